"""The same linear merge by other programs: time, memory, and whether the tensors are the same."""

import json
from pathlib import Path

from benchmarks.bench import Bench, Line, Row, Section
from benchmarks.measure import Runs, out_of, remove
from benchmarks.peers import Peer, find_peers
from fluxsmith.version import VERSION

__all__ = ["measure"]


def measure(bench: Bench) -> Section:
    """Run fluxsmith and every peer in turn on the same two files, then compare what they wrote."""
    peers, absent = find_peers(bench)
    section = Section([Row(sentence.split(" ")[0], "", "not measured", None, sentence) for sentence in absent])
    if not peers:
        return section
    a, b = bench.file("a"), bench.file("b")
    bench.remember(a, b)
    ours = bench.linear("fluxsmith", a, b)
    programs = [ours, *(peer.program(peer.name, a, b) for peer in peers)]
    found = bench.run("peers", programs, keep=[program.name for program in programs], may_fail=True)
    section.lines.append(_line(f"fluxsmith {VERSION}", found["fluxsmith"], bench.start, "", ""))
    for peer, program in zip(peers, programs[1:], strict=True):
        if peer.name not in found:
            section.rows.append(Row(f"against {peer.title}", f"at least {peer.hold:g} x", "failed", None, "see the log of the run"))
        else:
            _add(section, bench, peer, found, (out_of(ours), out_of(program)))
        remove(out_of(program))
    remove(out_of(ours))
    return section


def _add(section: Section, bench: Bench, peer: Peer, found: dict[str, Runs], outputs: tuple[Path, Path]) -> None:
    start = bench.start_of(peer.program, peer.name)
    times = found[peer.name].ratio(found["fluxsmith"], start, bench.start)
    equal = json.loads(bench.python("benchmarks.compare", *outputs))
    section.rows.append(Row(f"against {peer.title}", f"at least {peer.hold:g} x", f"{times:.1f} x", bench.verdict(times >= peer.hold)))
    section.lines.append(_line(peer.title, found[peer.name], start, f"{times:.1f} x", str(equal["text"])))


def _line(title: str, runs: Runs, start: float, times: str, equal: str) -> Line:
    return Line(title, runs.wall, start, runs.peak, runs.anonymous, times, equal)
