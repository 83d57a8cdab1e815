# SPDX-License-Identifier: Apache-2.0
"""Serving the page on this machine. Nothing else is contacted unless sharing was asked for."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rekindle.app.workbench import Workbench, load_sides
from rekindle.core.errors import RequestError
from rekindle.engine.watcher import LoggingWatcher, Watcher
from rekindle.prompting.options import AppOptions

PORTS_TRIED = 100


@dataclass(frozen=True)
class Served:
    """Where the page is: on this machine, and on the internet if it is shared there."""

    address: str
    shared: str


def run_app(options: AppOptions, *, watcher: Watcher | None = None) -> None:
    """Do what `rekindle app` does: load, serve, and wait until it is interrupted. Raises: as `serving`."""
    watcher = watcher or LoggingWatcher()
    with serving(options, watcher) as page:
        if page.shared:
            watcher.message(f"shared, for everyone who has the address: {page.shared}")
        watcher.message(f"the page is at {page.address} (Ctrl+C ends it)")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


@contextlib.contextmanager
def serving(options: AppOptions, watcher: Watcher) -> Iterator[Served]:
    """Load the models, and serve the page while the context lasts.

    Raises: RequestError without Gradio, a free port or a model; RekindleError.
    """
    if importlib.util.find_spec("gradio") is None:
        raise RequestError("the app needs Gradio; install it with: pip install 'rekindle[app]'")
    port = free_port(options.host, options.port)
    if port != options.port:
        watcher.message(f"port {options.port} is taken; {port} is used")
    bench = Workbench(load_sides(options, watcher), size_px=options.size_px, max_pixels=options.max_pixels)
    with tempfile.TemporaryDirectory(prefix="rekindle-app-", ignore_cleanup_errors=True) as folder:
        # Gradio has no other way in: the one is read when it is imported, the other when an upload is stored
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(Path(folder) / "uploads")}
        from rekindle.app.page import build_page
        from rekindle.app.theme import CSS_FILE, page_theme

        page = build_page(bench, Path(folder), max_upload_mb=options.max_upload_mb)
        _, address, shared = page.launch(
            server_name=options.host,
            server_port=port,
            share=options.share,
            inbrowser=options.open_browser,
            max_file_size=int(options.max_upload_mb * 2**20),
            allowed_paths=[folder],
            theme=page_theme(),
            css_paths=CSS_FILE,
            footer_links=[],
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
        )
        try:
            yield Served(address, shared or "")
        finally:
            page.close(verbose=False)


def free_port(host: str, first: int) -> int:
    """Return the first free port from `first` on. Raises RequestError if none of a hundred is, or the host is not ours."""
    last = min(first + PORTS_TRIED, 65536)
    for port in range(first, last):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                return port
        except socket.gaierror as error:
            raise RequestError(f"--host {host} is no address of this machine ({error}); use 127.0.0.1") from None
        except PermissionError:
            raise RequestError(f"--port {port} needs rights that you do not have; take one from 1024 on") from None
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise RequestError(f"--host {host} is no address of this machine; use 127.0.0.1") from None
    raise RequestError(f"no port from {first} to {last - 1} is free; choose another --port")
