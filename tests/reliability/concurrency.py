"""Several Python threads that call modules of all kinds, and forked children."""

import os
import pickle
import threading
import time

from .outcome import Outcome, last_line


def work():
    """(module, x, call) of every kind, with masks and without."""
    from cases import CASES, build, inputs

    made = []
    for i, name in enumerate(CASES):
        module = build(name, dtype=("float32", "float64")[i % 2])
        made.append((module, *inputs(module, 3, (37, 300)[i % 3 == 0], masks=i % 2 == 0)))
    return made


def bits(results):
    return {name: value.tobytes() for name, value in results.items()}


def threads(seconds, calls, count=4):
    """Until all threads together have made that many calls, or that time has passed."""
    from cases import everything

    import smm_py

    outcome, items = Outcome(), work()
    smm_py.set_num_threads(1)
    expected = [bits(everything(*item)) for item in items]
    end = time.monotonic() + seconds
    done = [0] * count

    def run(number):
        i = number
        while time.monotonic() < end and sum(done) < calls:
            i = (i + 5) % len(items)
            try:
                same = bits(everything(*items[i])) == expected[i]
                outcome.expect(same, f"thread {number}: other bits of {items[i][0]!r}")
            except BaseException as error:
                outcome.defect(last_line(error))
            done[number] += 2  # forward and backward

    def change():
        number = 0
        while time.monotonic() < end and sum(done) < calls:
            number = number % 5 + 1
            smm_py.set_num_threads(number)
            smm_py._core.trim()
            time.sleep(0.002)
            outcome.count("changes of the number of threads")

    each = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    each.append(threading.Thread(target=change))
    for thread in each:
        thread.start()
    for thread in each:
        thread.join()
    outcome.count("calls", sum(done))
    return outcome


def forks(children):
    """Children that compute after their parent has used threads."""
    from cases import everything

    import smm_py

    outcome, items = Outcome(), work()
    smm_py.set_num_threads(2)
    expected = [bits(everything(*item)) for item in items]
    for child in range(children):
        everything(*items[child % len(items)])  # the parent's threads are in use
        here, there = os.pipe()
        pid = os.fork()
        if pid == 0:
            found = b""
            try:
                chosen = [(child + i) % len(items) for i in range(4)]
                same = all(bits(everything(*items[i])) == expected[i] for i in chosen)
                found = pickle.dumps((same, smm_py.get_num_threads()))
            finally:
                os.write(there, found)
                os._exit(0)
        os.close(there)
        begin = time.monotonic()
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() - begin > 300:
                outcome.defect(f"child {child} hangs")
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                break
            time.sleep(0.005)
        with open(here, "rb") as pipe:
            data = pipe.read()
        same, number = pickle.loads(data) if data else (False, 0)
        outcome.expect(same and number == 1, f"child {child}: same bits {same}, threads {number}")
        outcome.count("children")
        outcome.count("calls in children", 8)
    return outcome
