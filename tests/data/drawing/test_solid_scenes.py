import numpy as np
import pytest

from data.drawing import solid_scenes
from data.drawing.solid_scenes import FRAMES_PER_SLOT, Scene, Solid

NUM_FRAMES = 12 * FRAMES_PER_SLOT


@pytest.fixture(scope="module", params=range(6))
def played(request):
    scene = Scene(np.random.default_rng(request.param))
    return scene, scene.places(np.arange(NUM_FRAMES))


def test_a_function_of_the_frame_alone():
    again = Scene(np.random.default_rng(0))
    first = Scene(np.random.default_rng(0)).places(np.arange(200))
    backwards = [again.places(np.array([t])) for t in (199, 3, 57)]
    for t, one in zip((199, 3, 57), backwards, strict=True):
        np.testing.assert_array_equal(one.centre[0], first.centre[t])
        np.testing.assert_array_equal(one.angle[0], first.angle[t])


def test_moves_smoothly_and_stays_on_the_floor(played):
    _, (centre, angle) = played
    assert np.abs(centre[..., :2]).max() <= 3
    assert centre[..., 2].min() == 0
    steps = np.linalg.norm(np.diff(centre, axis=0), axis=-1)
    assert steps.max() < 0.5  # a frame, where the floor is 6 wide
    assert np.abs(np.diff(angle, axis=0)).max() < 0.3
    # Slow at first and at last: no jolts.
    assert np.abs(np.diff(steps, axis=0)).max() < 0.2
    resting = centre[::FRAMES_PER_SLOT]
    assert (resting[..., 2] == 0).all()


def test_something_happens(played):
    _, (centre, _) = played
    moves = np.diff(centre, axis=0).any(-1)  # [T, N]
    assert moves.any(0).mean() > 0.6  # most solids move at some time
    assert 0.1 < moves.mean() < 0.8


def test_nothing_runs_into_anything_else(played):
    scene, (centre, _) = played
    solids = scene.solids
    for a in range(len(solids)):
        for b in range(a):
            apart = np.linalg.norm(centre[:, a, :2] - centre[:, b, :2], axis=-1)
            gap = apart - solids[a].reach - solids[b].reach
            low, high = np.sort(centre[:, [a, b], 2], axis=-1).T
            lower = np.where(centre[:, a, 2] <= centre[:, b, 2], solids[a].height, solids[b].height)
            over = high >= low + lower  # one passes over the other
            close = (gap < 0) & ~over
            if close.any():  # one is being put over the other, which fits into it
                cone, other = (a, b) if solid_scenes.fits(solids[b], solids[a]) else (b, a)
                assert solid_scenes.fits(solids[other], solids[cone])
                np.testing.assert_allclose(apart[close], 0, atol=1e-6)


def test_cones_are_put_over_others_and_taken_away():
    covered, uncovered = 0, 0
    for seed in range(20):
        scene = Scene(np.random.default_rng(seed))
        at = scene.places(np.arange(0, NUM_FRAMES, FRAMES_PER_SLOT)).centre[..., :2]
        same = (at[:, :, None] == at[:, None]).all(-1)  # [T, N, N]
        same &= ~np.eye(len(scene.solids), dtype=bool)
        change = np.diff(same.astype(int), axis=0)
        covered += (change > 0).sum() // 2
        uncovered += (change < 0).sum() // 2
    assert covered > 10
    assert uncovered > 5


def test_what_fits_under_a_cone():
    def solid(shape, radius, height):
        return Solid(shape, radius, height, (1, 1, 1), metal=False)

    cone = solid("cone", 1.0, 2.0)
    assert solid_scenes.fits(solid("sphere", 0.58, 1.16), cone)
    assert not solid_scenes.fits(solid("sphere", 0.6, 1.2), cone)
    assert solid_scenes.fits(solid("cylinder", 0.45, 0.9), cone)
    assert not solid_scenes.fits(solid("cylinder", 0.5, 1.0), cone)
    assert solid_scenes.fits(solid("cube", 0.39, 0.78), cone)
    assert not solid_scenes.fits(solid("cube", 0.42, 0.84), cone)
    assert solid_scenes.fits(solid("cone", 0.9, 1.8), cone)
    assert not solid_scenes.fits(cone, cone)
    assert not solid_scenes.fits(solid("sphere", 0.1, 0.2), solid("cylinder", 1, 2))
