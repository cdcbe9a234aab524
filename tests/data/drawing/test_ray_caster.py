import numpy as np
import pytest

from data.drawing import ray_caster, views
from data.drawing.solid_scenes import SHAPES, Places, Scene, Solid
from data.drawing.stage import Stage, normals


def alone(shape, *, height=0.0, angle=0.0, metal=False, radius=0.7, x=0.0, y=0.0):
    """One red solid in one frame."""
    solid = Solid(shape, radius, 2 * radius, (0.7, 0.05, 0.05), metal)
    return [solid], Places(np.array([[[x, y, height]]]), np.array([[angle]]))


def is_red(frame):
    frame = frame.astype(int)
    return frame[..., 0] - frame[..., 1] > 50


def inside(solid, x, y, z):
    """Whether points are in a solid at the origin, straight from what the shapes are."""
    radius, height = solid.radius, solid.height
    if solid.shape == "sphere":
        return x**2 + y**2 + (z - radius) ** 2 < radius**2
    level = (z > 0) & (z < height)
    if solid.shape == "cube":
        return level & (abs(x) < radius) & (abs(y) < radius)
    width = radius if solid.shape == "cylinder" else radius * (1 - z / height)
    return level & (x**2 + y**2 < width**2)


@pytest.mark.parametrize("shape", SHAPES)
def test_rays_meet_exactly_what_small_steps_along_them_meet(shape):
    """Every ray, walked in steps of 2 mm through the definition of the solid."""
    [solid], places = alone(shape)
    stage = Stage([solid], places)
    rng = np.random.default_rng(0)
    start = rng.uniform(-1, 1, (3, 300)) * 0.2 + [[2.0], [-2.0], [2.5]]
    ray = rng.uniform([[-0.8], [-0.8], [-0.1]], [[0.8], [0.8], [1.5]], (3, 300)) - start
    ray /= np.linalg.norm(ray, axis=0)
    start, ray = start.astype(np.float32), ray.astype(np.float32)
    found = stage.distance(0, np.zeros(300, int), tuple(start), tuple(ray))
    steps = np.arange(0, 6, 0.002)[:, None]
    walked = inside(solid, *(start[:, None] + steps * ray[:, None]))
    expected = np.where(walked.any(0), steps[walked.argmax(0), 0], np.inf)
    assert 50 < np.isfinite(expected).sum() < 290
    # A ray may cut a corner between two steps.
    agree = np.isclose(found, expected, atol=0.0041) | (found == expected)
    assert agree.mean() > 0.98
    near = stage.near(0, np.zeros(300, int), tuple(start), tuple(ray))
    assert np.isin(np.flatnonzero(np.isfinite(found)), near).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_normals_are_across_the_surface(shape):
    """Two neighbouring points of a surface differ by something at right angles to the normal."""
    [solid], places = alone(shape, angle=0.4)
    stage = Stage([solid], places)
    frame = np.zeros(4000, int)
    rng = np.random.default_rng(1)
    start = np.repeat([[1.5], [-3.0], [3.5]], 4000, 1)
    goal = rng.uniform([[-0.6], [-0.6], [0.1]], [[0.6], [0.6], [1.3]], (3, 4000))

    def meet(offset):
        ray = goal + offset - start
        ray = (ray / np.linalg.norm(ray, axis=0)).astype(np.float32)
        distance = stage.distance(0, frame, tuple(start.astype(np.float32)), tuple(ray))
        return start + distance * ray, ray

    (point, ray), (beside, _), (above, _) = (
        meet(np.array(o)[:, None]) for o in ([0, 0, 0], [0.01, 0, 0], [0, 0, 0.01])
    )
    hit = np.isfinite(point + beside + above).all(0)
    normal = normals(stage, frame[hit], frame[hit], tuple(point[:, hit].astype(np.float32)))
    normal = np.stack(normal)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=0), 1, rtol=1e-5)
    point, beside, above = point[:, hit], beside[:, hit], above[:, hit]
    across = np.cross((beside - point).T, (above - point).T)
    across /= np.linalg.norm(across, axis=-1, keepdims=True)
    across *= -np.sign((across * ray[:, hit].T).sum(-1, keepdims=True))
    agree = (across * normal.T).sum(-1) > 0.99
    # All but what is near an edge, which is rounded for the light.
    assert agree.mean() > (0.97 if shape in ("sphere", "cone") else 0.7)


def test_supersampling_is_the_mean_of_samples():
    """Where no shadow falls: four samples a pixel are the pixels of a picture twice as large."""
    solids, places = alone("sphere", x=-0.5)
    one = ray_caster.draw(views.view(96, 1), solids, places)[0]
    two = ray_caster.draw(views.view(48, 2), solids, places)[0]
    linear = (one.astype(float) / 255) ** 2
    mean = linear.reshape(48, 2, 48, 2, 3).mean((1, 3))
    red = is_red(two)
    assert red.sum() > 30
    np.testing.assert_allclose(two[red], 255 * np.sqrt(mean[red]), atol=2)


def test_a_zoom_of_two_is_the_middle_quarter():
    """With as many rays: the same but at edges, where directions are rounded."""
    solids, places = alone("sphere", x=-0.5)
    wide = ray_caster.draw(views.view(64, 1), solids, places)[0]
    near = ray_caster.draw(views.view(32, 1, zoom=2.0), solids, places)[0]
    middle = wide[16:48, 16:48]
    assert is_red(near).sum() == pytest.approx(is_red(middle).sum(), rel=0.02)
    differ = np.abs(near.astype(int) - middle).max(-1) > 1
    assert differ.mean() < 0.02


def test_nearer_hides_farther():
    red = Solid("cube", 0.5, 1.0, (0.7, 0.05, 0.05), metal=False)
    blue = Solid("cube", 0.5, 1.0, (0.05, 0.05, 0.7), metal=False)
    near, far = [0.0, -1.2, 0.0], [0.0, 0.0, 0.0]
    view = views.view(48, 1)
    angle = np.zeros((1, 2))
    both = [
        ray_caster.draw(view, order, Places(np.array([places]), angle))[0]
        for order, places in (([red, blue], [near, far]), ([blue, red], [far, near]))
    ]
    np.testing.assert_array_equal(*both)  # whichever comes first in the list
    hidden = ray_caster.draw(view, [red], Places(np.array([[near]]), np.zeros((1, 1))))[0]
    np.testing.assert_array_equal(is_red(both[0]), is_red(hidden))


def test_a_cone_hides_what_it_is_put_over():
    cone = Solid("cone", 0.805, 1.61, (0.05, 0.5, 0.05), metal=False)
    small = Solid("sphere", 0.35, 0.7, (0.7, 0.05, 0.05), metal=False)
    places = Places(np.array([[[0.3, 0.2, 0.0]] * 2]), np.zeros((1, 2)))
    assert not is_red(ray_caster.draw(views.view(64), [cone, small], places)).any()
    lifted = Places(np.array([[[0.3, 0.2, 2.1], [0.3, 0.2, 0.0]]]), np.zeros((1, 2)))
    assert is_red(ray_caster.draw(views.view(64), [cone, small], lifted)).sum() > 10


@pytest.mark.parametrize("shape", SHAPES)
def test_shadows(shape):
    """The floor is darker where the lamp is hidden, also under what is in the air."""
    view = views.view(96)
    empty = ray_caster.draw(view, *alone(shape, x=50))[0].astype(int)
    for height, least in ((0, 20), (2, 80)):  # little of a cone's own shadow is beside it
        frame = ray_caster.draw(view, *alone(shape, height=height))[0].astype(int)
        darker = (empty - frame).max(-1)
        darker[is_red(frame)] = 0
        assert (darker > 15).sum() > least
        # Everywhere else it is as bright as without the solid, or a little darker.
        assert (frame - empty)[~is_red(frame)].max() < 60
    # The shadow of what is in the air is not where it stands: it is to the right and behind.
    rows, columns = np.nonzero(darker > 25)
    stands_at = np.argwhere(is_red(ray_caster.draw(view, *alone(shape))[0])).mean(0)
    assert rows.mean() < stands_at[0]
    assert columns.mean() > stands_at[1] + 5


def test_metal_shines_and_rubber_does_not():
    view = views.view(96)
    metal, rubber = (
        ray_caster.draw(view, *alone("sphere", metal=metal))[0] for metal in (True, False)
    )
    assert (metal.min(-1) > 250).any()
    assert rubber.min(-1).max() < 220


def test_metal_mirrors_its_neighbours():
    metal = Solid("sphere", 0.7, 1.4, (0.3, 0.3, 0.3), metal=True)
    red = Solid("cube", 0.5, 1.0, (0.8, 0.02, 0.02), metal=False)
    far = Places(np.array([[[0.0, 1.0, 0.0], [60.0, 0.0, 0.0]]]), np.zeros((1, 2)))
    near = Places(np.array([[[0.0, 1.0, 0.0], [1.3, -0.3, 0.0]]]), np.zeros((1, 2)))
    view = views.view(192)
    with_cube = ray_caster.draw(view, [metal, red], near)[0]
    without = ray_caster.draw(view, [metal, red], far)[0]
    left = np.s_[:, :104]  # the cube itself is to the right of it
    assert not is_red(without)[left].any()
    assert is_red(with_cube)[left].sum() > 10


def test_alone_or_with_others_the_same_bits():
    scene = Scene(np.random.default_rng(3))
    view = views.view(40)
    frames = ray_caster.draw(view, scene.solids, scene.places(np.arange(45, 75)))
    assert frames.shape == (30, 40, 40, 3)
    assert frames.dtype == np.uint8
    for t in (45, 60, 74):
        [one] = ray_caster.draw(view, scene.solids, scene.places(np.array([t])))
        np.testing.assert_array_equal(one, frames[t - 45])
    assert (frames[0] != frames[-1]).any()


def test_out_of_the_picture():
    for shape in SHAPES:
        ray_caster.draw(views.view(24), *alone(shape, x=-30, metal=True))
        ray_caster.draw(views.view(24), *alone(shape, x=4.3, y=2.0, metal=True))
        ray_caster.draw(views.view(2, 1), *alone(shape, x=1, radius=0.01))  # between rays
