"""Asks an aggregator's gRPC as somebody would who has none of Tapio's code: everything is learned by reflection.

Usage: grpc_client.py ADDRESS AUTHORITY.pem NODE

Waits for a finding, and prints what it saw as one JSON object. Exits with another status than 0 where something is
not as the service's own description says.
"""

import json
import sys
import threading

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

# Nothing here takes longer on a machine that is busy with other builds.
PATIENCE_SECONDS = 90


class Service:
    """The methods of a service, by name; requests are given as keyword arguments."""

    def __init__(self, channel, pool, name):
        self.descriptor = pool.FindServiceByName(name)
        for method in self.descriptor.methods:
            request = message_factory.GetMessageClass(method.input_type)
            response = message_factory.GetMessageClass(method.output_type)
            kind = channel.unary_stream if method.server_streaming else channel.unary_unary
            call = kind(
                f"/{name}/{method.name}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
            setattr(self, method.name, self.asking(call, request))

    @staticmethod
    def asking(call, request):
        return lambda **fields: call(request(**fields), timeout=PATIENCE_SECONDS)


def refused(call, code):
    """The text of a refusal; it must have this code."""
    try:
        answer = call()
        if not hasattr(answer, "DESCRIPTOR"):
            next(iter(answer))
    except grpc.RpcError as error:
        assert error.code() == code, f"{error.code()}: {error.details()}"
        return error.details()
    raise AssertionError(f"it was answered instead of refused with {code}")


def documented(descriptor):
    return json_format.MessageToDict(descriptor, preserving_proto_field_name=True)


def main():
    address, authority, node = sys.argv[1:]
    with open(authority, "rb") as file:
        credentials = grpc.ssl_channel_credentials(root_certificates=file.read())
    channel = grpc.secure_channel(address, credentials)
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = descriptor_pool.DescriptorPool(database)
    services = sorted(database.get_services())
    findings = Service(channel, pool, "tapio.v1.CorrelationService")
    events = Service(channel, pool, "tapio.v1.EventService")
    health = Service(channel, pool, "grpc.health.v1.Health")

    serving = {
        service: documented(health.Check(service=service)).get("status")
        for service in ["", "tapio.v1.CorrelationService", "tapio.v1.EventService"]
    }
    refusals = {
        "StreamEvents": refused(
            lambda: events.StreamEvents(filter={"severity_min": 99, "trace_ids": ["abc"]}), grpc.StatusCode.INVALID_ARGUMENT
        ),
        "ListFindings": refused(
            lambda: findings.ListFindings(page_size=5000), grpc.StatusCode.INVALID_ARGUMENT
        ),
        "GetFinding": refused(
            lambda: findings.GetFinding(id="f-0000000000000000"), grpc.StatusCode.NOT_FOUND
        ),
    }

    # Kernel memory events of this node, in the background; the finding decides when that is enough.
    memory = pool.FindEnumTypeByName("tapio.v1.EventKind").values_by_name["EVENT_KIND_MEMORY"].number
    stream = events.StreamEvents(filter={"nodes": [node], "kinds": [memory]})
    stream.initial_metadata()
    seen = []

    def collect():
        try:
            for message in stream:
                seen.extend(documented(event) for event in message.events)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.CANCELLED:
                raise

    collector = threading.Thread(target=collect)
    collector.start()
    print("ready", flush=True)

    followed = findings.StreamFindings(include_open=True)
    start = cursor = ""
    finding = None
    for message in followed:
        cursor = message.cursor or cursor
        start = start or cursor
        if message.HasField("finding"):
            finding = message.finding
            break
    followed.cancel()
    stream.cancel()
    collector.join()

    # What an earlier cursor is behind comes again.
    again = findings.StreamFindings(resume_cursor=start)
    resumed = next(message.finding for message in again if message.HasField("finding"))
    again.cancel()
    pages = []
    token = ""
    while True:
        page = findings.ListFindings(page_size=1, page_token=token)
        pages.append([one.id for one in page.findings])
        token = page.next_page_token
        if not token:
            break
    got = findings.GetFinding(id=finding.id)
    print(
        json.dumps(
            {
                "services": services,
                "serving": serving,
                "refusals": refusals,
                "events": seen,
                "cursor": cursor,
                "resumed": resumed.id,
                "pages": pages,
                "finding": documented(got),
            }
        )
    )


if __name__ == "__main__":
    main()
