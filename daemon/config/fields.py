"""Every setting: its type, range, default, unit, and what raising or lowering it trades. Holds values; reads nothing."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from protocol.wire.ids import PeerIdField
from protocol.wire.limits import MAX_COMMITTEE, MAX_PROMPT_BYTES, MAX_TOKENS

EngineKind = Literal["embedded", "vllm", "url", "none"]

DEFAULT_LISTEN = "/ip4/0.0.0.0/tcp/4711"
DEFAULT_API = "127.0.0.1:4712"


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every group of settings."""


class ApiConfig(Section, frozen=True):
    """The OpenAI endpoint over TCP. The local socket has the same calls and needs none of this."""

    listen: str = DEFAULT_API
    """Address HOST:PORT of the OpenAI endpoint; port 0 picks a free one, "" turns it off."""
    key_file: str = ""
    """File (mode 0600) with the key that callers must send; required as soon as api.listen is not loopback."""


class EngineConfig(Section, frozen=True):
    """The model this peer serves, and what runs it."""

    kind: Literal["auto", "embedded", "vllm", "url", "none"] = "auto"
    """What runs the model; "auto" decides by engine.url and engine.model; "none" joins as a client."""
    model: str = ""
    """A .gguf file (embedded engine), an owner/name in the Hugging Face cache (vLLM), or a shipped model, as "" is."""
    url: str = ""
    """Base URL of an OpenAI-compatible server to serve from, such as http://127.0.0.1:8000/v1."""
    key_file: str = ""
    """File (mode 0600) with the key that the server at engine.url asks for."""
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    """CPU threads of the embedded engine; 0 takes one for a tiny model, else one per core up to 8. More answer sooner, alone."""
    slots: Annotated[int, Meta(ge=1, le=1024)] = 4
    """Requests the engine runs at once; more raise throughput and slow down each of them."""
    context_tokens: Annotated[int, Meta(ge=0, le=1 << 24)] = 0
    """Prompt and answer together, in tokens; 0 takes the model's own. More needs more memory."""
    extra_args: tuple[str, ...] = ()
    """Arguments appended to the command line of vLLM; never taken from a peer or a request."""
    vllm_executable: str = ""
    """The vllm program, or a Python that has vLLM, by full path: one in a venv of its own; "" looks on the PATH."""

    def chosen_kind(self) -> EngineKind:
        """The engine that `kind` means: a URL is served from; a .gguf file or a bare name is embedded; owner/name is vLLM's."""
        if self.kind != "auto":
            return self.kind
        if self.url:
            return "url"
        return "vllm" if "/" in self.model and not self.model.endswith(".gguf") else "embedded"


class RelayConfig(Section, frozen=True):
    """Relays carry the traffic of peers that cannot be reached directly."""

    serve: bool = True
    """Relay for others while we are reachable; costs bandwidth, helps the mesh."""
    use: bool = True
    """Be reached through relays while nothing better works; off leaves a box behind NAT unreachable."""
    reservations: Annotated[int, Meta(ge=1, le=4096)] = 64
    """Peers that may be reached through us at once."""
    circuits: Annotated[int, Meta(ge=1, le=4096)] = 64
    """Connections that we carry for others at once."""
    peer_circuits: Annotated[int, Meta(ge=1, le=4096)] = 16
    """Connections that we carry for one peer at once; more let a single busy peer take all of them."""
    circuit_mib: Annotated[int, Meta(ge=0, le=1 << 20)] = 4096
    """MiB that one of them may carry before it is closed; 0 for no limit."""
    kib_per_second: Annotated[int, Meta(ge=0, le=1 << 24)] = 2048
    """KiB/s for all of them together, shared alike by those in use; 0 for no limit. 2048 is 17 Mbit/s."""


class NatConfig(Section, frozen=True):
    """How hard this peer tries to be reached without a relay."""

    punch: bool = True
    """Turn relayed connections into direct ones by hole punching; off keeps all of them on relays."""
    udp: bool = True
    """Open UDP on the number of each listening port; off leaves the pairs of NATs that only UDP passes on relays."""
    birthday: bool = True
    """Send up to 1,024 small packets to find a peer behind a symmetric NAT; off spares touchy networks and loses those peers."""
    port_mapping: bool = True
    """Ask the home gateway (PCP, NAT-PMP, UPnP) for our port once peers see us behind a NAT; off leaves that to hole punching."""


class LanConfig(Section, frozen=True):
    """Peers on the same local network find each other by mDNS, without a bootstrap."""

    mdns: bool = True
    """Say there that this peer exists, on interfaces with private addresses that `listen` covers; off keeps quiet."""


class RoundConfig(Section, frozen=True):
    """A committee's round. A phase ends early once everybody has spoken; the times bound the wait for those who do not."""

    committee: Annotated[int, Meta(ge=2, le=MAX_COMMITTEE)] = 7
    """Members that answer a question; more raise quality, cost and the time to the slowest."""
    draw_timeout_ms: Annotated[int, Meta(ge=100, le=60_000)] = 5_000
    """Milliseconds to gather the committee."""
    seal_timeout_ms: Annotated[int, Meta(ge=500, le=1_800_000)] = 30_000
    """Milliseconds to answer and seal; slow models need more."""
    reveal_timeout_ms: Annotated[int, Meta(ge=100, le=60_000)] = 5_000
    """Milliseconds to reveal what was sealed."""
    judge_timeout_ms: Annotated[int, Meta(ge=500, le=600_000)] = 30_000
    """Milliseconds to compare answers, seal and reveal ballots."""


class LimitsConfig(Section, frozen=True):
    """How much this peer takes on at once. Lower ones protect; higher ones admit more."""

    queue: Annotated[int, Meta(ge=0, le=10_000)] = 16
    """Requests that wait for an engine slot before peers are told to come back; more wait longer."""
    peer_calls: Annotated[int, Meta(ge=1, le=1024)] = 8
    """Requests of one peer that are served or wait at once; more let a single busy peer take every slot."""
    prompt_bytes: Annotated[int, Meta(ge=1024, le=MAX_PROMPT_BYTES)] = MAX_PROMPT_BYTES
    """Bytes of a peer's prompt; longer ones are refused. More let strangers keep the engine reading."""
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] = MAX_TOKENS
    """Tokens that a peer's answer may have; a request for more is cut to it. More let strangers hold a slot for longer."""
    connections: Annotated[int, Meta(ge=32, le=1024)] = 128
    """Connections to peers at once; each may hold 256 KiB of what was received and is kept alive."""
    local_clients: Annotated[int, Meta(ge=1, le=4096)] = 64
    """Connections of local programs at once, socket and endpoint together. One more ends the longest idle, or gets a 503."""


class PatienceConfig(Section, frozen=True):
    """How long this peer waits for what. Shorter ones move on to another peer sooner; longer ones forgive slow ones."""

    queue_ms: Annotated[int, Meta(ge=10, le=600_000)] = 5_000
    """Milliseconds that a request waits for a slot of this peer's engine before it is sent away."""
    reader_ms: Annotated[int, Meta(ge=100, le=600_000)] = 30_000
    """Milliseconds for which a peer may take nothing of its answer before its slot is given to another."""
    first_token_ms: Annotated[int, Meta(ge=100, le=3_600_000)] = 60_000
    """Milliseconds to a peer's first word before another is asked, and between two of the own engine; long prompts need more."""
    gap_ms: Annotated[int, Meta(ge=100, le=600_000)] = 15_000
    """Milliseconds between two words of a peer before another goes on with its answer."""
    hedge: bool = False
    """Ask a second peer when the first is slower than 95 of 100 were; the first word wins. A twentieth more work."""


class ContentConfig(Section, frozen=True):
    """Model files that are shared with peers and fetched from them. Nothing is shared that its owner did not seed or pull."""

    quota_gib: Annotated[int, Meta(ge=0, le=1 << 20)] = 100
    """GiB that fetched files may take in the data folder; 0 fetches nothing."""
    upload_kib_s: Annotated[int, Meta(ge=0, le=1 << 24)] = 8192
    """KiB a second that all peers together are sent of shared files; 0 sets no limit. More helps the mesh and fills the line."""
    accept_from: Annotated[tuple[PeerIdField, ...], Meta(max_length=256)] = ()
    """Peer ids whose pushed files are fetched without asking; everybody else's are refused."""


class ProbeConfig(Section, frozen=True):
    """Covert gold: questions of known answer to the peers that your questions go to, to learn who is good at what."""

    share: Annotated[float, Meta(ge=0, le=0.5)] = 0.05
    """Share of all that peers are asked by this one; 0 turns it off. More learns sooner and takes more of other boxes' time."""
    per_hour: Annotated[int, Meta(ge=1, le=100_000)] = 120
    """Probes and gold rounds in an hour, at most."""


class VerifyConfig(Section, frozen=True):
    """Spot-checks that peers run the model they offer: another engine of the same configuration weighs their answers."""

    share: Annotated[float, Meta(ge=0, le=1)] = 0.05
    """Share of answers by other peers that are checked; 0 turns it off. The checking peer reads the question and the answer."""
    tolerance_millinats: Annotated[int, Meta(ge=1, le=1000)] = 50
    """Thousandths of a nat by which log-probabilities may differ; less finds finer copies and doubts other hardware sooner."""


class LogConfig(Section, frozen=True):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe line that is written."""
    format: Literal["auto", "pretty", "json"] = "auto"
    """"pretty" for people, "json" for collectors; "auto" asks whether it is a terminal."""


class Config(Section, frozen=True):
    """All settings of one daemon, checked."""

    data_dir: Path
    """Folder (mode 0700) of the key, the claims and the transcripts; one daemon at a time."""
    runtime_dir: Path
    """Folder (mode 0700) of the local socket and the engine's; its path must be short."""
    role: Literal["peer", "bootstrap"] = "peer"
    """"bootstrap" serves and asks nothing and keeps no claims: others meet and are relayed there. `swarmd bootstrap` sets it."""
    listen: Annotated[tuple[str, ...], Meta(max_length=16)] = (DEFAULT_LISTEN,)
    """Multiaddrs to listen on for peers; port 0 picks a free one, [] dials out only."""
    join: Annotated[tuple[str, ...], Meta(max_length=256)] = ()
    """Multiaddrs, each ending in /p2p/<peer id>, of peers to join the mesh through."""
    api: ApiConfig = ApiConfig()
    engine: EngineConfig = EngineConfig()
    relay: RelayConfig = RelayConfig()
    nat: NatConfig = NatConfig()
    lan: LanConfig = LanConfig()
    round: RoundConfig = RoundConfig()
    limits: LimitsConfig = LimitsConfig()
    patience: PatienceConfig = PatienceConfig()
    content: ContentConfig = ContentConfig()
    probe: ProbeConfig = ProbeConfig()
    verify: VerifyConfig = VerifyConfig()
    log: LogConfig = LogConfig()

    @property
    def socket_path(self) -> Path:
        """Where local programs reach the daemon."""
        return self.runtime_dir / "api.sock"
