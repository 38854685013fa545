"""What is used of tensorboardX, which would import PyTorch wherever it is installed: seconds, and for nothing here."""

import sys

_torch = sys.modules.get("torch")
sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it fails, and tensorboardX does without
try:
    from tensorboardX import summary
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import RecordWriter
finally:
    del sys.modules["torch"]
    if _torch is not None:
        sys.modules["torch"] = _torch

__all__ = ["Event", "RecordWriter", "SessionLog", "summary"]
