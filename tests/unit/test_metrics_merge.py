"""One page from the texts of several processes."""

from __future__ import annotations

from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from fetchbox.metrics import merge

OPENMETRICS = """\
# HELP fetchbox_downloads Downloads.
# TYPE fetchbox_downloads counter
fetchbox_downloads_total{code="OK"} 3
# HELP fetchbox_seconds Time.
# TYPE fetchbox_seconds histogram
fetchbox_seconds_sum 1.5
fetchbox_seconds_count 2
fetchbox_seconds_bucket{le="1.0"} 1
fetchbox_seconds_bucket{le="+Inf"} 2
# EOF
"""
PROMETHEUS = """\
# HELP fetchbox_requests_total Requests.
# TYPE fetchbox_requests_total counter
fetchbox_requests_total{code="200"} 7.0
# HELP fetchbox_downloads_total Downloads.
# TYPE fetchbox_downloads_total counter
fetchbox_downloads_total{code="OK"} 1
"""


def samples(page: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_both_formats_merge_into_one_family_with_a_process_label() -> None:
    page = merge({"worker 0": [OPENMETRICS], "worker 1": [OPENMETRICS], "api 0": [PROMETHEUS]})
    found = samples(page)
    assert page.count("# TYPE fetchbox_downloads_total counter") == 1
    assert found["fetchbox_downloads_total", (("code", "OK"), ("process", "worker 1"))] == 3
    assert found["fetchbox_downloads_total", (("code", "OK"), ("process", "api 0"))] == 1
    assert found["fetchbox_seconds_bucket", (("le", "+Inf"), ("process", "worker 0"))] == 2
    assert found["fetchbox_seconds_count", (("process", "worker 0"),)] == 2
    assert "# TYPE fetchbox_seconds histogram" in page
    assert "# EOF" not in page


def test_several_sources_of_one_process_stand_side_by_side() -> None:
    found = samples(merge({"api 0": [OPENMETRICS, 'x{a="b"} 1\n', ""]}))
    assert found["x", (("a", "b"), ("process", "api 0"))] == 1
    assert found["fetchbox_downloads_total", (("code", "OK"), ("process", "api 0"))] == 3


def test_the_callers_own_samples_get_no_label() -> None:
    own = GaugeMetricFamily("up", "Whether it is up", labels=["service"])
    own.add_metric(["hub"], 1)
    assert samples(merge({}, [own])) == {("up", (("service", "hub"),)): 1.0}


def test_a_text_that_cannot_be_read_costs_only_itself() -> None:
    found = samples(merge({"bad": ["# TYPE x counter\nx{ 1\n# EOF\n"], "good": ["y 1\n"]}))
    assert found == {("y", (("process", "good"),)): 1.0}


def test_a_label_of_the_process_itself_is_kept() -> None:
    assert samples(merge({"w": ['z{process="inner"} 1\n']})) == {("z", (("process", "inner"),)): 1.0}
