"""What is used of tensorboardX, which would import PyTorch wherever it is installed: seconds, and for nothing here."""

import sys

_torch = sys.modules.get("torch")
sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it fails, and tensorboardX does without
try:
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
finally:
    del sys.modules["torch"]
    if _torch is not None:
        sys.modules["torch"] = _torch

__all__ = ["Event", "EventsWriter", "SessionLog", "summary"]
