"""Builds a data set from its downloaded archives, once.

python experiments/build_data.py ucf101 --manual_dir=DOWNLOADS --data_dir=DIR

This is `tfds build data/building/ucf101` with all of its flags. The program `tfds` itself imports
TensorFlow (its command `convert_format` does, as of 4.9.10), which nothing here needs; where
TensorFlow is installed, `tfds build data/building/ucf101 ...` does the same.

Without --data_dir the data set goes to ~/tensorflow_datasets. docs/data.md says what each data set
needs in --manual_dir, and which --config there is.
"""

import sys
from pathlib import Path

# Run from a checkout: `data` is a package of the repository, not an installed one.
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

DATA_SETS = ("cater", "hmdb51", "ucf101")


def main(arguments) -> int:
    """Builds; what a user can get wrong ends in a message, not in a traceback."""
    try:
        arguments.execute()
    except (ValueError, OSError, RuntimeError, AssertionError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def parse_flags(argv: list[str]):
    """The arguments of `tfds build`, where names of data sets stand for their folders."""
    from absl import logging
    from tensorflow_datasets.scripts.cli import build, cli_utils

    logging.set_verbosity(logging.WARNING)
    argv = [str(ROOT / "data" / "building" / word) if word in DATA_SETS else word for word in argv]
    return cli_utils.make_flags_parser(build.Args, "Builds data sets.")(argv)


if __name__ == "__main__":
    from absl import app

    # Not before: the processes that decode import this file, too.
    app.run(main, flags_parser=parse_flags)
