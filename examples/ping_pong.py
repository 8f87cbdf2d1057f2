# SPDX-License-Identifier: MIT
"""Two processes bounce a number. Each writes into the other's memory and says so."""

import multiprocessing
import statistics
import time

import dmaplane

ROUNDS = 2000


def far(address: str, key: bytes) -> None:
    with dmaplane.open(plane="embedded") as plane, plane.connect(address) as endpoint:
        with plane.buffer(64) as ball, ball.region() as court:
            there = endpoint.region(key)
            size = len(court.key)
            ball.memory()[:size] = court.key  # so the other side learns where to write
            endpoint.write_imm(ball[:size], there[:size], imm=size).wait(timeout=10)
            for _ in range(ROUNDS):
                number = endpoint.immediate().wait(timeout=10).immediate
                endpoint.write_imm(ball, there, imm=number).wait(timeout=10)


def main() -> None:
    with dmaplane.open(plane="embedded") as plane, plane.buffer(64) as ball, ball.region() as court:
        with plane.listen("127.0.0.1:0") as listener:
            start = multiprocessing.get_context("spawn").Process
            other = start(target=far, args=(listener.address, court.key))
            other.start()
            with listener.accept(timeout=120) as endpoint:
                size = endpoint.immediate().wait(timeout=120).immediate
                there = endpoint.region(bytes(ball.memory()[:size]))
                took = []
                for number in range(ROUNDS):
                    began = time.perf_counter_ns()
                    back = endpoint.exchange(ball, there, imm=number, timeout=10)
                    took.append(time.perf_counter_ns() - began)
                    assert back.immediate == number
                middle = statistics.median(took) / 1000
                print(f"{ROUNDS} round trips by {endpoint.path}, median {middle:.1f} us")
                other.join()


if __name__ == "__main__":
    main()
