"""The data sets, a file each; `protocol` says what every one of them has."""
