"""A command that writes shards and is sent a signal in the middle of it, however fast or slow the machine is.

`python -m tests.helpers.signals SIGKILL 3 0.01 5 tim_jax.encode …`: 0.01 seconds after its third file is about to be
moved to its place, at the latest when the fifth is. 0 instead of 3: the seconds count from its start. A watching
process could look too late, and find that everything is done.
"""

import os
import runpy
import signal
import sys
import threading
import time


def main() -> None:
    number, module = signal.Signals[sys.argv[1]], sys.argv[5]
    first, delay, latest = int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    moved, sent = 0, False

    def send():
        nonlocal sent
        if not sent:
            sent = True
            os.kill(os.getpid(), number)
            time.sleep(60)  # the process ends here, and is not done before it does

    def send_later():
        time.sleep(delay)
        send()

    def send_or_wait():
        if moved == latest or moved == first and not delay:
            send()
        elif moved == first:
            threading.Thread(target=send_later, daemon=True).start()

    def watch(event, about):
        nonlocal moved
        if event == "os.rename" and os.path.basename(about[1]).startswith("rows-"):
            moved += 1
            send_or_wait()

    sys.addaudithook(watch)
    send_or_wait()
    sys.argv = sys.argv[5:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
