"""The metrics of several replicas as those of one server, with a label that says whose a number is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


def joined(told: Sequence[tuple[str, str]]) -> bytes:
    """`(replica, its metrics in Prometheus' text format)` as one text; label `replica`."""
    registry = CollectorRegistry()
    registry.register(_Joined(told))
    return generate_latest(registry)


class _Joined(Collector):
    def __init__(self, told: Sequence[tuple[str, str]]) -> None:
        self.told = told

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in self.told:
            for family in text_string_to_metric_families(text):
                kept = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {**sample.labels, "replica": replica}
                    kept.add_sample(sample.name, labels, sample.value)
        yield from families.values()
