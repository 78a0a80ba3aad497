"""Metrics in Prometheus' text format."""

from __future__ import annotations

from tracenet.viewer.metrics import Counter, Gauge, Histogram, Metrics


def test_counters_escape_their_labels() -> None:
    counter = Counter("n_total", "Things.", ("route",))
    assert counter.lines() == []
    counter.add('a"b\\c\nd')
    counter.add('a"b\\c\nd', by=2.5)
    assert counter.lines() == ['n_total{route="a\\"b\\\\c\\nd"} 3.5']
    assert Counter("m_total", "Things.").lines() == ["m_total 0"]


def test_a_gauge_is_read_when_it_is_asked() -> None:
    values = iter([1, 2.25])
    gauge = Gauge("g", "Things.", lambda: next(values))
    assert [gauge.lines(), gauge.lines()] == [["g 1"], ["g 2.25"]]


def test_a_histogram_counts_upwards_and_its_bounds_belong_to_it() -> None:
    histogram = Histogram("h", "Seconds.", ("phase",), buckets=(0.1, 1.0))
    for value in (0.1, 0.5, 0.5, 7):
        histogram.observe(value, "x")
    assert histogram.lines() == [
        'h_bucket{phase="x",le="0.1"} 1',
        'h_bucket{phase="x",le="1"} 3',
        'h_bucket{phase="x",le="+Inf"} 4',
        'h_sum{phase="x"} 8.1',
        'h_count{phase="x"} 4',
    ]


def test_the_text_names_every_family_once() -> None:
    metrics = Metrics({"tracenet_queue_length": ("Clicks that wait.", lambda: 3)})
    metrics.requests.add("/", "GET", "200")
    metrics.seconds.observe(0.01, "/")
    lines = metrics.text().splitlines()
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    assert "tracenet_queue_length 3" in lines
    assert metrics.text().endswith("\n")
