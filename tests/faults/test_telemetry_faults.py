"""What telemetry counts when connections break."""

from __future__ import annotations

import pytest
from faults_support import KEY, make_event, warm
from support.servers import Server
from support.services import both_modes, make_service
from support.telemetry import Telemetry

from benchmarks.rigs.proxy import Proxy
from sessionstore import BackendUnavailable


@both_modes
async def test_a_cut_connection_is_counted_with_its_retry_and_its_repeat(
    server: Server, mode: str
) -> None:
    with Proxy(server.embedded.socket_path) as proxy:
        service = make_service(mode, proxy.url)
        telemetry = Telemetry()
        await service.create_session(app_name="a", user_id="u", session_id="s")
        await warm(service)
        await service.append_event(KEY, make_event(1))
        opened = getattr(service, "service", service)._executor.traffic().history.opened
        telemetry.instrument(service)
        sent = telemetry.total("sessionstore.network.io", network_io_direction="transmit")
        passed = proxy.passed("request")
        await service.append_event(KEY, make_event(2))
        # Bytes are those that left the process.
        sent_by_append = (
            telemetry.total("sessionstore.network.io", network_io_direction="transmit") - sent
        )
        assert sent_by_append == proxy.passed("request") - passed > 100

        proxy.cut("reply", 0)  # the append is done, but its reply is lost
        await service.append_event(KEY, make_event(3))
        proxy.disarm()
        assert telemetry.total("sessionstore.retries", error_type="ConnectionLost") == 1
        assert telemetry.total("sessionstore.connections.lost") == 1
        assert telemetry.total("sessionstore.connections.opened") == opened + 1
        assert telemetry.total("sessionstore.operations", db_operation_name="append_event") == 2
        assert telemetry.total("sessionstore.repeats") == 1
        assert [span.status.is_ok for span in telemetry.take_spans()] == [True, True]

        proxy.cut("reply", 0)
        with pytest.raises(BackendUnavailable):
            await service.pop_event(KEY)  # is never sent twice
        [span] = telemetry.take_spans()
        assert (span.attributes or {})["error.type"] == "BackendUnavailable"
        await service.aclose()
        assert telemetry.total("db.client.connection.count") == 0
