"""Does what round machines ask for: messages out, work on our engine, timers, news to whoever waits. Decides nothing."""

from collections.abc import Callable

import structlog
import trio

from daemon.round_links import RoundLinks
from daemon.round_role import Finished, Role
from daemon.round_table import RoundTable, held_by
from daemon.round_work import RoundWork
from daemon.serving import Serving
from protocol.round import events as ev
from protocol.round.pulling import PullRequest
from protocol.wire.ids import Hash, PeerId, short

log = structlog.get_logger("swarmd.rounds")


class RoundEffects:
    """`to_other_role(role, raw)` takes what one of our machines sends to the other one of the same round."""

    def __init__(
        self, me: PeerId, table: RoundTable, links: RoundLinks, serving: Serving, to_other_role: Callable[[Role, bytes], None]
    ) -> None:
        self._me = me
        self._table = table
        self._links = links
        self._serving = serving
        self._work = RoundWork(serving)
        self._to_other_role = to_other_role
        self.plants: dict[Hash, Callable[[str], str]] = {}
        """By round of our own: what becomes of our own member's answer, so that others have a known pair to judge."""
        self.finished: Callable[[Finished], None] = lambda _: None

    def perform(self, role: Role, effect: ev.Effect, nursery: trio.Nursery) -> None:
        """Do one effect; what takes time runs in the role's own nursery."""
        match effect:
            case ev.Send(peers, raw):
                for peer in peers:
                    if peer == self._me:
                        self._to_other_role(role, raw)
                    else:
                        nursery.start_soon(self._links.push, peer, raw)
            case ev.Pull(hashes, peers):
                nursery.start_soon(self._pull, role, hashes, peers)
            case ev.WakeAt(time):
                role.wake = time
            case ev.Generate() | ev.Judge() | ev.Explain():
                role.work = trio.CancelScope()
                nursery.start_soon(self._run_work, role, effect, role.work)
            case _:
                self._note(role, effect)

    def _note(self, role: Role, effect: ev.Effect) -> None:
        match effect:
            case ev.StopWork():
                if role.work is not None:
                    role.work.cancel()
            case ev.Progress() | ev.Folded():
                if role.report is not None:
                    role.report(effect)
            case ev.Fault(peer, code, message):
                self._links.faults[str(code)] += 1
                log.debug("a peer broke the round's protocol", peer=short(peer), code=str(code), reason=message)
            case ev.Equivocation(peer):
                self._links.faults["equivocation"] += 1
                log.warning("a peer signed two statements for one slot and was dropped", peer=short(peer))
            case ev.Closed(outcome, transcript):
                role.over_at = trio.current_time() + role.header.durations.total_ms / 1000
                done = Finished(role.machine.round, role.header, role.requested, outcome, transcript)
                if role.report is not None:
                    role.report(done)
                self.finished(done)

    async def _pull(self, role: Role, hashes: tuple[Hash, ...], peers: tuple[PeerId, ...]) -> None:
        def arrived(peer: PeerId, raw: bytes) -> None:
            role.tell(ev.Pulled(peer, (raw,)))

        if self._me in peers:
            others = self._table.find(role.machine.round, (not role.requested,))
            role.tell(ev.Pulled(self._me, tuple(held_by(others, PullRequest(role.machine.round, hashes)))))
        await self._links.pull(role.machine.round, hashes, [peer for peer in peers if peer != self._me], arrived)

    async def _run_work(self, role: Role, effect: ev.Generate | ev.Judge | ev.Explain, scope: trio.CancelScope) -> None:
        if isinstance(effect, ev.Generate) and role.requester != self._me:
            effect = ev.Generate(self._serving.within_limits(effect.job), effect.seconds)
        with scope:
            done = await self._work.run(effect)
            if isinstance(done, ev.Answered) and (plant := self.plants.get(role.machine.round)) is not None:
                done = ev.Answered(plant(done.text), done.tokens)
            role.tell(done)
