"""A batch before its first job: every column, value, file and name checked against the workflow and every server."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .addresses import Addresses, node_title
from .declared import declared_inputs
from .errors import BatchError
from .jobs import Grid, JobList, Slot, build_jobs, seed_drawer
from .jobs_file import Row
from .naming import job_names
from .queue_client import QueueClient, Workflow
from .records import batch_secret, check_free
from .workflow import check_version, for_server


@dataclass(frozen=True)
class Wish:
    """What somebody asks for.

    Attributes:
        workflow: in either form, as it was read.
        workflow_name: its file's name without ending.
        rows: of the jobs file.
        folder: what relative file names in them start from.
        name: template of the pictures' names.
        out: folder for them.
    """

    workflow: Mapping[str, Any]
    workflow_name: str
    rows: Sequence[Row]
    grids: Sequence[Grid]
    folder: Path
    name: str
    out: Path


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        workflow: in API form.
        jobs: all of them, saved ones too.
        names: of the jobs' first pictures, without ending.
        seeds: the inputs that hold seeds: slot -> address.
        addresses: of the inputs that jobs fill.
        secret: what random seeds are drawn with.
    """

    wish: Wish
    workflow: Workflow
    jobs: JobList
    names: Sequence[str]
    seeds: Mapping[Slot, str]
    addresses: Mapping[Slot, str]
    secret: str

    def digest(self) -> str:
        """Identifies the batch: a journal of another one is not continued. Where nodes lie on the page makes no difference."""
        wish = self.wish
        decisive = [self.workflow, [row.cells for row in wish.rows], [asdict(grid) for grid in wish.grids], wish.name]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def make_plan(wish: Wish, object_info: Mapping[str, Any]) -> Plan:
    """The plan for servers with these nodes.

    Raises:
        BatchError: it cannot be done.
        JournalError: the output folder's journal is damaged.
    """
    begun = batch_secret(wish.out)
    secret = begun or secrets.token_hex(16)
    workflow = for_server(dict(wish.workflow), object_info)
    addresses = Addresses(workflow, object_info)
    jobs = build_jobs(wish.rows, wish.grids, addresses, wish.folder, seed_drawer(secret))
    names = job_names(wish.name, jobs, workflow, wish.workflow_name)
    if begun is None:
        check_free(wish.out, names)
    titles = {(target.node, target.declared.name): target.address for target in addresses.targets}
    return Plan(wish, workflow, jobs, names, _seeds(workflow, object_info), titles, secret)


def _seeds(workflow: Workflow, object_info: Mapping[str, Any]) -> dict[Slot, str]:
    return {
        (number, declared.name): f"{node_title(node)}.{declared.name}"
        for number, node in workflow.items()
        for declared in declared_inputs(object_info[node["class_type"]], node["inputs"])
        if declared.is_seed
    }


def check_server(client: QueueClient, plan_for: Callable[[Mapping[str, Any]], Plan]) -> tuple[str, Plan]:
    """A server's version, and the plan that its nodes make possible.

    Raises:
        QueueError: it does not answer.
        BatchError: it cannot do the batch.
    """
    try:
        version = client.version()
        check_version(version)
        return version, plan_for(client.object_info())
    except BatchError as error:
        raise BatchError(f"{client.url}: {error}") from None


def check_same(plan: Plan, other: Plan, url: str) -> None:
    """A BatchError where a server would be sent another workflow than the rest."""
    if plan.workflow != other.workflow:
        raise BatchError(f"{url}: its nodes are of another version than the first server's; bring both to the same")
