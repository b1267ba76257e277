"""Metrics of several processes as one Prometheus page: each child's text, with a `process` label on every sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import structlog
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.samples import Sample

log = structlog.get_logger("fetchbox.metrics")

Parser = Callable[[str], Iterable[Metric]]

PROCESS_LABEL = "process"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def merge(texts: Mapping[str, Iterable[str]], own: Iterable[Metric] = ()) -> str:
    """One page from the texts of each process and the families that the caller measured itself.

    A text is Prometheus or OpenMetrics (it ends with `# EOF`). One that cannot be read is left out and logged; families of the same name
    are one family, and the first process's help and type hold.
    """
    families: dict[str, Metric] = {}
    for family in own:
        _add(families, family, family.samples)
    for process, sources in texts.items():
        for text in sources:
            for family in _read(process, text):
                _add(families, family, [_labelled(sample, process) for sample in family.samples])
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(families.values()))
    return generate_latest(registry).decode()


def _read(process: str, text: str) -> list[Metric]:
    try:
        parse: Parser = parse_openmetrics if text.rstrip().endswith("# EOF") else parse_prometheus
        return list(parse(text))
    except (ValueError, KeyError, IndexError) as error:
        log.warning("the metrics of a process cannot be read", of=process, error=str(error))
        return []


def _add(families: dict[str, Metric], family: Metric, samples: Iterable[Sample]) -> None:
    known = families.get(family.name)
    if known is None:
        known = families[family.name] = Metric(family.name, family.documentation, family.type)
    known.samples.extend(samples)


def _labelled(sample: Sample, process: str) -> Sample:
    labels = sample.labels if PROCESS_LABEL in sample.labels else {**sample.labels, PROCESS_LABEL: process}
    # Exemplars and timestamps have no place on this page.
    return Sample(sample.name, labels, sample.value)


class _Page(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families
