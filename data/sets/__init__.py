"""The data sets, and their list; `protocol` says what every one of them has."""

from data.sets import (
    kinetics_csv,
    moving_digits,
    moving_solids,
    recorded,
    video_file,
    video_folder,
)
from data.sets.protocol import ClipSet, StreamSet

CLIPS: dict[str, ClipSet] = {
    "cater": recorded.CATER,
    "hmdb51": recorded.HMDB51,
    "kinetics_csv": kinetics_csv,
    "moving_digits": moving_digits,
    "ucf101": recorded.UCF101,
    "video_folder": video_folder,
}
STREAMS: dict[str, StreamSet] = {
    "moving_solids": moving_solids,
    "video_file": video_file,
}
