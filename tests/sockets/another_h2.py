"""A client of HTTP/2 by prior knowledge that shares no code with podgate's server.

Given podgate's address. Its library ends the connection where a frame, a field or a window is not by
the book, so that whatever is answered here came in good order. Exits 0 if all of it was right.
"""

import json
import socket
import sys

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)


class Answer:
    def __init__(self):
        self.status = None
        self.fields = {}
        self.body = b""
        self.ended = False
        self.reset = None

    def json(self):
        return json.loads(self.body)


class Client:
    """One connection."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.answers = {}
        self.h2.initiate_connection()
        self.flush()
        # As many streams as it allows are known only now.
        self.read()

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def read(self):
        received = self.socket.recv(65536)
        assert received, "podgate ended the connection"
        for event in self.h2.receive_data(received):
            match event:
                case ResponseReceived():
                    answer = self.answers[event.stream_id]
                    answer.fields = dict(event.headers)
                    answer.status = int(answer.fields[":status"])
                case DataReceived():
                    self.answers[event.stream_id].body += event.data
                    length = event.flow_controlled_length
                    self.h2.acknowledge_received_data(length, event.stream_id)
                case StreamEnded():
                    self.answers[event.stream_id].ended = True
                case StreamReset():
                    self.answers[event.stream_id].reset = event.error_code
                case ConnectionTerminated():
                    raise AssertionError(f"podgate ended the connection: {event}")
        self.flush()

    def begin(self, method, path, fields=(), end=True):
        stream = self.h2.get_next_available_stream_id()
        self.answers[stream] = Answer()
        head = [
            (":method", method),
            (":scheme", "http"),
            (":path", path),
            (":authority", "podgate.test"),
            ("authorization", "Bearer key"),
            *fields,
        ]
        self.h2.send_headers(stream, head, end_stream=end)
        return stream

    def upload(self, stream, body):
        """Sends a body until the answer is there; returns how much of it was sent."""
        sent = 0
        while sent < len(body) and self.answers[stream].status is None:
            room = min(
                self.h2.local_flow_control_window(stream),
                self.h2.max_outbound_frame_size,
            )
            if room == 0:
                self.read()
                continue
            part = body[sent : sent + room]
            sent += len(part)
            self.h2.send_data(stream, part, end_stream=sent == len(body))
            self.flush()
        return sent

    def answer(self, stream):
        answer = self.answers[stream]
        while not answer.ended:
            assert answer.reset is None, f"stream {stream} was reset: {answer.reset}"
            self.read()
        return answer

    def get(self, path):
        stream = self.begin("GET", path)
        self.flush()
        return self.answer(stream)

    def post(self, path, body):
        stream = self.begin("POST", path, end=False)
        assert self.upload(stream, body) == len(body), "answered before it was asked"
        return self.answer(stream)

    def give_up(self, stream):
        """Neither sends nor reads any more of it."""
        if self.answers[stream].reset is None:
            self.h2.reset_stream(stream, error_code=8)
            self.flush()


def work(number, **script):
    return json.dumps({"input": {"number": number, **script}}).encode()


def is_whole(answer):
    """As it would be over HTTP/1, without HTTP/1's own fields."""
    assert answer.status == 200, (answer.status, answer.body)
    assert answer.fields["content-type"].startswith("application/json"), answer.fields
    assert int(answer.fields["content-length"]) == len(answer.body)
    for name in ("connection", "keep-alive", "transfer-encoding", "upgrade"):
        assert name not in answer.fields, answer.fields


def a_job(client, number):
    submitted = client.post("/v2/ep/run", work(number))
    is_whole(submitted)
    job = submitted.json()["id"]
    while (status := client.get(f"/v2/ep/status/{job}")).json()["status"] != "COMPLETED":
        is_whole(status)
    is_whole(status)
    assert status.json()["id"] == job
    assert status.json()["output"] == {"number": number}, status.json()


def a_hundred_at_once(client):
    streams = {}
    for number in range(100):
        stream = client.begin("POST", "/v2/ep/runsync", end=False)
        client.h2.send_data(stream, work(number, sleep=0.2), end_stream=True)
        streams[stream] = number
    client.flush()
    for stream, number in streams.items():
        answer = client.answer(stream)
        is_whole(answer)
        assert answer.json()["output"]["number"] == number, "another's answer"


def a_large_upload(client):
    is_whole(client.post("/v2/ep/run", work("x" * 9_000_000)))


def refused(answer):
    assert answer.status == 413, (answer.status, answer.body)
    assert answer.fields["content-type"] == "application/problem+json", answer.fields
    assert answer.json()["outcome"] == "payload_too_large", answer.body


def uploads_that_are_refused_early(client):
    whole = b"x" * 50_000_000
    # By what it declares, before any of it is there.
    stream = client.begin(
        "POST", "/v2/ep/run", [("content-length", str(len(whole)))], end=False
    )
    client.flush()
    refused(client.answer(stream))
    client.give_up(stream)
    # By what has come of it.
    stream = client.begin("POST", "/v2/ep/run", end=False)
    sent = client.upload(stream, whole)
    assert 10 << 20 < sent < len(whole), sent
    refused(client.answer(stream))
    client.give_up(stream)


client = Client(sys.argv[1])
a_job(client, "first")
a_hundred_at_once(client)
a_large_upload(client)
uploads_that_are_refused_early(client)
# The connection is as good as before.
a_job(client, "last")
