"""Providers of workshops: which one a sandbox's name stands for, and what it lacks here."""

from envs.address import http_address
from envs.agents import container_engine, local_workshop, remote_workshop
from envs.agents.container_workshop import ContainerWorkshop
from envs.agents.local_workshop import LocalWorkshop
from envs.agents.remote_workshop import RemoteWorkshop
from envs.agents.workshop import ContainerConfig, Plan, Workshop

LOCAL = ("bubblewrap", "none")


def misfit(sandbox: str, container: ContainerConfig, *, builds: bool) -> str:
    """Name what is wrong with these settings, in a sentence; "" where nothing is."""
    contained = sandbox in container_engine.ENGINES
    if is_remote(sandbox):
        try:
            http_address(sandbox)
        except ValueError as error:
            return f"sandbox {error}"
    elif not contained and sandbox not in LOCAL:
        names = ", ".join(map(repr, (*LOCAL, *container_engine.ENGINES)))
        return (
            f"sandbox {sandbox!r} has to be one of {names}, or http://HOST:PORT of a server of them"
        )
    if contained and not container.image and not builds:
        return (
            f'sandbox {sandbox!r} needs container.image, or dockerfile = "build" for task folders'
        )
    if sandbox in LOCAL and builds:
        return f'dockerfile = "build" needs sandbox = "docker" or "podman", not {sandbox!r}'
    if sandbox in LOCAL and container != ContainerConfig():
        return f'container is for sandbox = "docker" or "podman"; with {sandbox!r} nothing would use it'
    return ""


def obstacle(sandbox: str, container: ContainerConfig) -> str:
    """Why no episode can have its workshop here, in a sentence; "" where it can."""
    if sandbox in container_engine.ENGINES:
        return container_engine.obstacle(sandbox, container)
    if is_remote(sandbox):
        return remote_workshop.obstacle(sandbox)
    return local_workshop.missing(sandbox)


def lacking(sandbox: str) -> str:
    """Why this machine can serve no workshops of a sandbox, in a sentence; "" where it can."""
    if sandbox not in (*LOCAL, *container_engine.ENGINES):
        return f"has to be one of {', '.join((*LOCAL, *container_engine.ENGINES))}"
    return obstacle(sandbox, ContainerConfig())


def workshop(plan: Plan) -> Workshop:
    """A workshop by its plan."""
    if plan.sandbox in container_engine.ENGINES:
        return ContainerWorkshop(plan)
    if is_remote(plan.sandbox):
        return RemoteWorkshop(plan)
    return LocalWorkshop(plan)


def is_remote(sandbox: str) -> bool:
    """True for the address of a server of workshops."""
    return "://" in sandbox
