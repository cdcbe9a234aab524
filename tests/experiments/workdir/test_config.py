import json

import pytest

from experiments.configs import autoencoder
from experiments.workdir import config as workdirs
from tests.experiments import tiny


def test_same_config_and_what_may_change(tmp_path):
    config = tiny.config()
    workdirs.check(config, tmp_path / "new")
    workdirs.claim(config, tmp_path / "new")
    workdirs.check(config, tmp_path / "new")
    workdirs.check(tiny.config(train__num_steps=99, data__num_workers=2), tmp_path / "new")
    saved = json.loads((tmp_path / "new" / "config.json").read_text())
    assert saved["model"]["widths"] == [4, 4, 4, 4, 4]


def test_names_every_difference(tmp_path):
    workdirs.claim(tiny.config(), tmp_path)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    other = tiny.config(rule="backprop", model__widths=(4, 4, 4, 4, 8)).unlock()
    del other.data["speed"]
    with pytest.raises(ValueError, match="holds another experiment") as error:
        workdirs.check(other, tmp_path)
    for difference in (
        "data.speed was 1.0 there and is missing now",
        "model.widths was [4, 4, 4, 4, 4] there and is [4, 4, 4, 4, 8] now",
        'rule was "sideways" there and is "backprop" now',
    ):
        assert difference in str(error.value)


def test_a_run_that_saved_nothing_locks_nothing(tmp_path):
    workdirs.claim(tiny.config(), tmp_path)
    (tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp").mkdir(parents=True)
    workdirs.check(tiny.config(optimizer__learning_rate=1e-4), tmp_path)
    # One of several processes makes the folder before another one writes the config.
    (tmp_path / "config.json").unlink()
    workdirs.check(tiny.config(), tmp_path)


@pytest.mark.parametrize("field", ["update_every", "chunk"])
def test_a_stream_is_not_counted_in_other_steps(field, tmp_path):
    """Frame numbers, and with them dropout's keys, are counted in updates of so many frames."""
    config = autoencoder.get_config("smoke")
    workdirs.claim(config, tmp_path)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    config.online[field] *= 11
    with pytest.raises(ValueError, match=rf"online\.{field} was \d+ there and is \d+ now"):
        workdirs.check(config, tmp_path)


def test_workdirs_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        workdirs.check(tiny.config(), tmp_path / "file")
    (tmp_path / "a" / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has checkpoints but no config\.json"):
        workdirs.check(tiny.config(), tmp_path / "a")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        workdirs.check(tiny.config(), tmp_path)


def test_fields_that_are_newer_than_a_run_have_to_have_their_defaults(tmp_path):
    """A run goes on with a later version, as it was; and is not changed by a new field."""
    config = tiny.config()
    workdirs.claim(config, tmp_path)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    file = tmp_path / "config.json"
    earlier = json.loads(file.read_text())
    del earlier["loss"], earlier["optimizer"]["ema"], earlier["data"]["scale"]
    file.write_text(json.dumps(earlier))
    workdirs.check(config, tmp_path)
    with pytest.raises(ValueError, match=r"optimizer\.ema was 0\.0 there and is 0\.9 now"):
        workdirs.check(tiny.config(optimizer__ema=0.9), tmp_path)
