"""Long and lossy paths, and a share of a bottleneck beside the kernel's CUBIC."""

from __future__ import annotations

import threading
from collections.abc import Callable

from net.bed import BenchError
from net.contenders import TcpPlain
from net.nodes import InProcess
from net.record import Plan, Record
from table.places import GBIT, laboratory

LOSSES = ((0.0, 0.6), (0.001, 1.5), (0.01, 1.5), (0.02, 1.5))  # of a round trip's two one-way paths each, seconds wanted
TRANSFER_BYTES = 5_000_000
PAYLOAD_SHARE = 1393 / 1500  # of a full packet at MTU 1500
BOTTLENECK_MBIT, FAIR_S = 100.0, 15.0


def lossy(record: Record, plan: Plan) -> None:
    """5 MB over 30 ms of round trip and 1 Gbit/s."""
    for loss, most in LOSSES:
        if plan.late(0.9):
            raise BenchError("out of time")
        scenario = f"5 MB over 30 ms, {100 * loss:g} % loss"
        record.limit(scenario, "transfer_s", "<=", most)
        with record.attempt(scenario, InProcess.label), laboratory("none", 7.5, loss=loss / 2) as (bed, a, b, _, rendezvous):
            node = InProcess(bed, a, b, rendezvous)
            node.start()
            for _ in range(max(5, plan.runs)):
                record.add(scenario, InProcess.label, "transfer_s", node.bulk(total=TRANSFER_BYTES)["took"])


def wide(record: Record, plan: Plan) -> None:
    """A wide path: what arrives from the third second on."""
    for delay, text in ((10.0, "40 ms"), (25.0, "100 ms")):
        scenario = f"1 Gbit/s at {text}, 3 to 6 s after the start"
        record.limit(scenario, "mbit_s", ">=", 0.85 * GBIT * PAYLOAD_SHARE)
        with record.attempt(scenario, InProcess.label), laboratory("none", delay, queue_kb=6250) as (bed, a, b, _, rendezvous):
            node = InProcess(bed, a, b, rendezvous)
            node.start()
            for _ in range(plan.runs):
                record.add(scenario, InProcess.label, "mbit_s", node.late_rate(3.0, 6.0))


def fair(record: Record, plan: Plan) -> None:
    """One stream of ours and one TCP CUBIC stream of the kernel in one bottleneck of 20 ms, with a queue of one round trip."""
    scenario = f"beside TCP CUBIC, {BOTTLENECK_MBIT:g} Mbit/s and 20 ms"
    queue_kb = round(BOTTLENECK_MBIT * 1e6 / 8 * 0.02 / 1024)
    record.limit(scenario, "share_percent", ">=", 35.0)
    record.limit(scenario, "share_percent", "<=", 65.0)
    with (
        record.attempt(scenario, InProcess.label),
        laboratory("none", 5.0, mbit=BOTTLENECK_MBIT, queue_kb=queue_kb) as (bed, a, b, _, rendezvous),
    ):
        ours, kernel = InProcess(bed, a, b, rendezvous), TcpPlain(bed, a, b)
        ours.start()
        kernel.start()
        for _ in range(max(3, plan.runs)):
            mine, its = together(lambda: ours.bulk(FAIR_S)["mbit_s"], lambda: kernel.bulk(FAIR_S)["mbit_s"])
            record.add(scenario, InProcess.label, "share_percent", 100 * mine / (mine + its))
            record.add(scenario, InProcess.label, "mbit_s", mine)
            record.add(scenario, TcpPlain.label, "mbit_s", its)


def together(*works: Callable[[], float]) -> list[float]:
    """Each in a thread. Raises BenchError when one fails."""
    out: dict[int, float] = {}

    def go(i: int, work: Callable[[], float]) -> None:
        out[i] = work()

    threads = [threading.Thread(target=go, args=pair) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(out) < len(works):
        raise BenchError("one of the streams failed")
    return [out[i] for i in range(len(works))]
