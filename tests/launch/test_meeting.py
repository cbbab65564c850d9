"""How a host finds its own address, and which of the hosts is the meeting point."""

import socket
from types import SimpleNamespace

import pytest

from camshaft.launch.meeting import address_towards, interface_of, is_own
from camshaft.launch.program import _choose_meeting

ELSEWHERE = "192.0.2.1"  # an address for documentation, which no host has


class TestAnAddress:
    def test_is_this_hosts_own_or_not(self):
        assert is_own("127.0.0.1")
        assert is_own("localhost")
        assert not is_own(ELSEWHERE)
        assert not is_own("no-such-host.invalid")

    def test_on_the_way_to_this_host_is_the_loopback_only_where_that_was_asked_for(self, monkeypatch):
        assert address_towards("127.0.0.1") == "127.0.0.1"
        found = socket.getaddrinfo("127.0.0.1", 9, type=socket.SOCK_DGRAM)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        assert address_towards("this-hosts-name") is None  # as /etc/hosts says on many machines

    def test_of_an_unknown_host_is_not_known(self):
        assert address_towards("no-such-host.invalid") is None

    def test_belongs_to_an_interface(self):
        assert interface_of("127.0.0.1") in [name for _, name in socket.if_nameindex()]
        assert interface_of(ELSEWHERE) is None


class TestHowHostsMeet:
    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch):
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "as it was")  # what a user has chosen stays

    def chosen(self, most, **options):
        defaults = {
            "nnodes": str(most),
            "node_rank": None,
            "rdzv_backend": None,
            "rdzv_endpoint": "",
            "rdzv_conf": "",
            "master_addr": "127.0.0.1",
            "local_addr": None,
        }
        arguments = SimpleNamespace(**defaults | options)
        _choose_meeting(arguments, most)
        return arguments

    def test_at_an_endpoint_is_with_c10d_and_else_by_their_numbers(self):
        assert self.chosen(2, rdzv_endpoint=f"{ELSEWHERE}:1").rdzv_backend == "c10d"
        assert self.chosen(2, node_rank=1, master_addr=ELSEWHERE).rdzv_backend == "static"
        assert self.chosen(2, rdzv_endpoint=f"{ELSEWHERE}:1", rdzv_backend="static").rdzv_backend == "static"

    def test_a_host_that_has_not_the_endpoints_address_does_not_wait_for_others_there(self):
        assert self.chosen(2, rdzv_endpoint=f"{ELSEWHERE}:1").rdzv_conf == "is_host=0"

    def test_several_launchers_of_one_machine_find_out_themselves_which_is_the_first(self):
        assert self.chosen(2, rdzv_endpoint="127.0.0.1:1").rdzv_conf == ""

    def test_the_only_host_is_the_meeting_point_and_notices_that_another_program_has_the_port(self):
        assert self.chosen(1, rdzv_endpoint="127.0.0.1:1", rdzv_conf="timeout=5").rdzv_conf == "timeout=5,is_host=1"

    def test_what_was_said_is_kept(self):
        chosen = self.chosen(2, rdzv_endpoint=f"{ELSEWHERE}:1", rdzv_conf="is_host=1", local_addr="127.0.0.1")
        assert (chosen.rdzv_conf, chosen.local_addr) == ("is_host=1", "127.0.0.1")
