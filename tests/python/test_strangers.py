"""The port at which ranks meet: where it is open, and what comes to it besides ranks."""
import random
import socket
import struct
import subprocess
import threading
import time

import pytest
from conftest import clean_environment
from test_stop import TRAIN, folder, listens, one_of_two, port  # noqa: F401 (fixtures)

STEPS = 60


def rank(folder, number, port, *settings, **environment):
    words = [TRAIN, "--config", "run.yaml", *(part for word in (f"max_train_steps={STEPS}", "train_batch_size=2", "rendezvous_seconds=60",
                                                                *settings) for part in ("--set", word))]
    return subprocess.Popen([str(word) for word in words], cwd=folder, env=clean_environment(**one_of_two(number, port), **environment),
                            text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def await_port(process, port):
    deadline = time.monotonic() + 60
    while not listens(port):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def finish(*ranks):
    try:
        said = [process.communicate(timeout=120)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    return [process.returncode for process in ranks], said


def listening_at(port):
    """Local addresses of sockets that listen at the port, as /proc/net writes them."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in open(f"/proc/net/{table}").read().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == "0A" and int(address.rpartition(":")[2], 16) == port:
                found.add(address.rpartition(":")[0])
    return found


def test_ranks_of_one_machine_meet_at_loopback(folder, port):  # noqa: F811
    first = rank(folder, 0, port)
    await_port(first, port)
    assert listening_at(port) == {"0100007F"}
    codes, said = finish(first, rank(folder, 1, port))
    assert codes == [0, 0], said


def garbage():
    random.seed(1)
    yield b""
    yield b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    yield bytes.fromhex("16030100c8010000c40303") + random.randbytes(190)
    for size in (1, 4, 64, 4096, 1 << 20):
        yield random.randbytes(size)
    # What the store's own clients begin with: the query VALIDATE and its magic number. Then sizes that cannot be had.
    hello = b"\x00" + struct.pack("<I", 0x3C85F7CE)
    yield hello
    for query in range(20):
        yield hello + bytes([query]) + struct.pack("<Q", 1 << 62) + random.randbytes(32)
        yield hello + bytes([query]) + struct.pack("<Q", 3) + b"abc" + struct.pack("<Q", 1 << 40)


def throw_at(port, seconds, thrown):
    end = time.monotonic() + seconds
    held = []
    while time.monotonic() < end:
        for data in garbage():
            try:
                client = socket.create_connection(("127.0.0.1", port), timeout=2)
                client.settimeout(2)
                client.sendall(data)
                thrown.append(len(data))
                held.append(client)
            except OSError:
                pass
        for client in held[:-5]:
            client.close()
        del held[:-5]
        time.sleep(0.05)


@pytest.mark.parametrize("when", ["while peers are awaited", "while they train"])
def test_garbage(folder, port, when):  # noqa: F811
    first = rank(folder, 0, port)
    await_port(first, port)
    thrown = []
    if when == "while peers are awaited":
        throw_at(port, 2, thrown)
        second = rank(folder, 1, port)
    else:
        second = rank(folder, 1, port)
        thrower = threading.Thread(target=throw_at, args=(port, 3, thrown))
        thrower.start()
    codes, said = finish(first, second)
    if when != "while peers are awaited":
        thrower.join()
    assert codes == [0, 0], said
    assert len(thrown) > 20
    odd = [line for text in said for line in text.splitlines() if " info " not in line]
    assert len(odd) <= 1, odd


def test_ranks_with_another_secret(folder, port):  # noqa: F811
    for name in ("a", "b"):
        (folder / name).write_text(name)
        (folder / name).chmod(0o600)
    codes, said = finish(*(rank(folder, number, port, "rendezvous_seconds=4", MEMSIEVE_SECRET_FILE=str(folder / name))
                           for number, name in ((0, "a"), (1, "b"))))
    assert codes[0] == 4 and "1 processes came that are not of this run" in said[0] and "MEMSIEVE_SECRET_FILE" in said[0], said
    assert codes[1] == 4, said
    codes, said = finish(*(rank(folder, number, port, MEMSIEVE_SECRET_FILE=str(folder / "a")) for number in (0, 1)))
    assert codes == [0, 0], said
    (folder / "a").chmod(0o640)
    codes, said = finish(rank(folder, 0, port, MEMSIEVE_SECRET_FILE=str(folder / "a")))
    assert codes == [2] and "others can read it" in said[0], said
