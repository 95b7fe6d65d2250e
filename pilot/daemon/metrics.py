"""Metrics in the Prometheus text format, served on -metrics-addr (off by default; meant for loopback).

Everything is read from the native counters at the moment of the request, in the server's own thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pilot.errors import PilotError

# Name of the native counter: (metric, what it counts).
COUNTERS: Mapping[str, tuple[str, str]] = {
    "bytes_sent": ("pilot_tunnel_sent_bytes", "Bytes of tunnel datagrams sent."),
    "bytes_recv": ("pilot_tunnel_received_bytes", "Bytes of tunnel datagrams received."),
    "pkts_sent": ("pilot_tunnel_sent_datagrams", "Tunnel datagrams sent."),
    "pkts_recv": ("pilot_tunnel_received_datagrams", "Tunnel datagrams received."),
    "opened_ok": ("pilot_frames_opened", "Encrypted frames that opened."),
    "opened_fail": ("pilot_frames_failed", "Encrypted frames that did not open."),
    "opened_early": ("pilot_frames_opened_early", "Of these, those that came a moment before their key."),
    "opened_era1": ("pilot_frames_opened_era1", "Of these, in the encryption of the first releases (-accept-era1)."),
    "syn_refused": ("pilot_streams_refused", "Inbound streams refused: nobody listens."),
    "syn_rate_limited": ("pilot_streams_rate_limited", "Inbound streams over the rate limit."),
    "accept_queue_drops": ("pilot_accept_queue_drops", "Inbound streams that no local program took in time."),
    "drop_event": ("pilot_events_dropped", "Events of strangers dropped because too many were waiting."),
    "client_frames": ("pilot_client_frames", "Frames from local clients."),
    "client_dials": ("pilot_client_dials", "Dials of local clients answered by the data plane alone."),
    "client_bad_frames": ("pilot_client_bad_frames", "Frames that cost a local client its connection."),
    "client_slow": ("pilot_clients_slow", "Local clients disconnected because they did not read."),
    "send_errors": ("pilot_send_errors", "Datagrams the system refused to send."),
}
GAUGES: Mapping[str, tuple[str, str]] = {
    "peers": ("pilot_peers", "Peers known to the data plane."),
    "sessions": ("pilot_sessions", "Peers with an encrypted session."),
    "conns": ("pilot_streams", "Streams, those of the past in TIME_WAIT included."),
    "ports": ("pilot_ports", "Ports that somebody listens on."),
    "clients": ("pilot_clients", "Local clients connected."),
}
DROPS = "drop_"


class NodeCollector(Collector):
    """Turns counters into metrics. stats: the native counters; extra: gauges by name of metric."""

    def __init__(
        self, stats: Callable[[], Mapping[str, int]], extra: Callable[[], Mapping[str, float]]
    ) -> None:
        self._stats = stats
        self._extra = extra

    def collect(self) -> Iterator[Metric]:
        """All metrics as they are now."""
        stats = self._stats()
        for name, (metric, text) in COUNTERS.items():
            yield CounterMetricFamily(metric, text, value=stats[name])
        for name, (metric, text) in GAUGES.items():
            yield GaugeMetricFamily(metric, text, value=stats[name])
        drops = CounterMetricFamily("pilot_drops", "Input dropped, by reason.", labels=["reason"])
        for name, value in stats.items():
            if name.startswith(DROPS) and name not in COUNTERS:
                drops.add_metric([name.removeprefix(DROPS)], value)
        yield drops
        for metric, number in self._extra().items():
            yield GaugeMetricFamily(metric, "State of the control plane.", value=number)


class MetricsServer:
    """The HTTP server, in a thread of its own."""

    def __init__(self, addr: tuple[str, int], collector: NodeCollector) -> None:
        """Starts to serve. Raises PilotError if the address cannot be used."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(collector)
        try:
            started: tuple[WSGIServer, Thread] = start_http_server(addr[1], addr[0], registry)
        except OSError as error:
            raise PilotError("internal", f"metrics address {addr[0]}:{addr[1]}: {error.strerror}") from None
        self._server, self._thread = started

    @property
    def port(self) -> int:
        """The port in use."""
        return int(self._server.server_port)

    def stop(self) -> None:
        """Ends the thread; takes up to half a second."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
