"""Play a dream, or a real environment, in the browser: ``python -m worldmodel.play``."""

import asyncio
import signal
import sys
import threading
import webbrowser
from typing import TYPE_CHECKING, Any

from worldmodel import cli
from worldmodel.checks import check_seed, check_temperature
from worldmodel.models.config import Precision
from worldmodel.shipped import DEFAULT_WORLD

if TYPE_CHECKING:
    from worldmodel.player.factory import SessionFactory

MAX_PORT = 65535


def play(
    world: str = "",
    store: str = "",
    beside: bool = False,
    env: str = "",
    env_kwargs: dict[str, Any] = {},
    agent: str = "",
    seed: int = 0,
    temperature: float = 1.0,
    host: str = "127.0.0.1",
    port: int = 0,
    open_browser: bool = True,
    max_dreams: int = 4,
    device: str = "cpu",
    precision: Precision = "float32",
) -> None:
    """Play in the browser: a dream; with --beside, the real environment next to it; with --env, that environment alone.

    It prints the address of the page and serves it until Control-C. Only this machine can open it, unless --host says
    otherwise.

    Args:
        world: name of a shipped world, or run folder of a dynamics model; the page can switch to others. By default
            the world of --agent, or lab-seekavoid.
        store: folder of recorded episodes to dream from, by default the world's own clips; with --env, the folder that
            your episodes are recorded into.
        beside: show the real environment next to the dream, under the same actions, with PSNR and surprise.
        env: Gymnasium id of the environment to play, as in worldmodel.collect; with --beside, by default the one that
            the world was trained on.
        env_kwargs: arguments of the environment; --env.NAME VALUE is short for --env_kwargs.NAME VALUE.
        agent: name of a shipped agent, or run folder of one, that plays while you hold no key.
        seed: random seed of the first dream, or of all recorded episodes.
        temperature: sampling temperature of the first dream, 0 or more; 0 always takes the most probable code.
        host: address to listen on; with any other than 127.0.0.1, whoever has the printed address can play.
        port: port to listen on, or 0 for a free one.
        open_browser: open the page in a browser; false only prints its address.
        max_dreams: maximum number of players at once; always 1 when recording into a store.
        device: device to dream on, cpu or cuda.
        precision: number format of the dynamics model: float32, bfloat16, or auto for bfloat16 if the hardware has it.
    """
    check_seed(seed)
    check_temperature(temperature)
    if not 0 <= port <= MAX_PORT or max_dreams < 1:
        raise ValueError(f"--port must be in [0, {MAX_PORT}] and --max_dreams 1 or more, got {port} and {max_dreams}")
    from worldmodel.player.factory import SessionFactory
    from worldmodel.player.watch import world_of

    default = world_of(agent) if agent else DEFAULT_WORLD  # also checks the agent
    factory = SessionFactory(world or default, store, beside, env, env_kwargs, seed, device, precision, agent)
    factory.open().close()  # whatever is wrong is said here, not in the browser
    asyncio.run(_serve(factory, host, port, max_dreams, seed, temperature, open_browser))


async def _serve(
    factory: "SessionFactory",
    host: str,
    port: int,
    max_dreams: int,
    seed: int,
    temperature: float,
    open_browser: bool,
) -> None:
    """Serve until the program is interrupted or stopped."""
    from worldmodel.player.access import is_loopback
    from worldmodel.player.server import PlayServer

    server = PlayServer(factory, host, port, max_dreams, seed, temperature)
    if not is_loopback(host):
        print(
            f"warning: --host {host} lets other machines play; give the address only to those who may", file=sys.stderr
        )
    print(f"playing at {server.address}  (Control-C ends it)", flush=True)
    if open_browser:
        # in a thread, as a browser in the terminal runs until it is left; once the signals below are handled
        browser = threading.Thread(target=webbrowser.open, args=(server.address,), daemon=True)
        asyncio.get_running_loop().call_soon(browser.start)
    try:
        stopped_by = await _stop_signal()
    finally:
        await server.close()
    if stopped_by == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + stopped_by)  # the shell's convention


async def _stop_signal() -> int:
    """Wait for Control-C, SIGTERM, or SIGHUP of a closed terminal; return the signal's number.

    A handler that raises inside a callback of the event loop could keep the server from being closed.
    """
    loop = asyncio.get_running_loop()
    received: asyncio.Queue[int] = asyncio.Queue()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                loop.add_signal_handler(number, received.put_nowait, number)
    return await received.get()


if __name__ == "__main__":
    cli.run(play)
