"""A terminal for a command: `terminal.py COLUMNS ROWS COMMAND...`.

What the command writes goes to standard output. Lines on standard input are what happens to it:
`size COLUMNS ROWS`, `type TEXT` (with Python's escapes), `signal NAME`. Ends as the command does.
"""

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios


def main() -> int:
    columns, rows, *command = sys.argv[1:]
    child, terminal = pty.fork()
    if child == 0:
        # Not before it has its size.
        os.read(0, 1)
        os.execvp(command[0], command)
    resize(terminal, columns, rows)
    os.write(terminal, b"\n")
    asked = b""
    while True:
        for ready in select.select([terminal, 0], [], [])[0]:
            try:
                part = os.read(ready, 65536)
            except OSError:  # What Linux says of a terminal that nobody has any more.
                part = b""
            if ready == terminal:
                if not part:
                    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                os.write(1, part)
                continue
            if not part:
                os.kill(child, signal.SIGKILL)
                return 1
            *lines, asked = (asked + part).split(b"\n")
            for line in lines:
                what, _, rest = line.decode().partition(" ")
                if what == "size":
                    resize(terminal, *rest.split(" "))
                elif what == "type":
                    os.write(terminal, rest.encode().decode("unicode_escape").encode())
                else:
                    os.kill(child, signal.Signals[rest])


def resize(terminal: int, columns: str, rows: str) -> None:
    size = struct.pack("HHHH", int(rows), int(columns), 0, 0)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)


sys.exit(main())
