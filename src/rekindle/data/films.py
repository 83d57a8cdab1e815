# SPDX-License-Identifier: Apache-2.0
"""Video files as folders of frames."""

from __future__ import annotations

from pathlib import Path

from rekindle.core.errors import RequestError
from rekindle.core.files import write_atomically

FILM_SUFFIXES = (".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm")


def is_film(path: str) -> bool:
    """Whether a name is that of a video file which is there."""
    return path.lower().endswith(FILM_SUFFIXES) and Path(path).is_file()


def write_frames(path: str, folder: Path) -> int:
    """Decode a video to folder/00000.png, ... and return the number of frames.

    Raises: RequestError without PyAV, and for a file that holds no video or cannot be decoded.
    """
    try:
        import av
    except ImportError as error:
        raise RequestError(
            f"{path}: reading a video needs PyAV (pip install av); or turn it into frames: ffmpeg -i {path} frames/%05d.png"
        ) from error
    count = 0
    try:
        with av.open(path) as container:
            for count, frame in enumerate(container.decode(video=0), start=1):
                picture = frame.to_image()  # type: ignore[no-untyped-call]
                write_atomically(
                    folder / f"{count - 1:05}.png",
                    lambda stream, p=picture: p.save(stream, format="PNG"),  # type: ignore[misc]
                )
    except (av.FFmpegError, IndexError) as error:
        raise RequestError(f"{path}: not readable as a video: {error}; check the file") from error
    if not count:
        raise RequestError(f"{path}: the video has no frame")
    return count
