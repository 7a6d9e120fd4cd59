"""`hagane serve`."""

from __future__ import annotations

import contextlib
import socket

from hagane.cli.command import read
from hagane.pool.launch import launch
from hagane.server.engine_config import engine_config
from hagane.server.listening import listen
from hagane.system.errors import HaganeError
from hagane.system.logging import configure_logging, configure_tracing
from hagane.system.setting_groups import GROUPS
from hagane.system.settings import Settings, refuse_unknown_variables
from hagane.text.hub import model_stores, resolve_model

ORDER = (
    "Every option is also an environment variable (--max-sequences: HAGANE_MAX_SEQUENCES) and a "
    "key of\nthe TOML file that HAGANE_CONFIG names (max_sequences). Options win over variables, "
    "these over\nthe file."
)


def _listen(settings: Settings) -> list[socket.socket]:
    """The common server's sockets, before anything is loaded for it."""
    if settings.admin_port:
        # It is bound when the server starts; a port that is taken is reported now.
        for probe in listen(settings.admin_host, settings.admin_port, "admin_port"):
            probe.close()
    return listen(settings.host, settings.port, "port")


def run(arguments: list[str]) -> int:
    """Serve until a signal. Raises HaganeError when the engine cannot start."""
    refuse_unknown_variables()
    settings = read(Settings, arguments, "serve", GROUPS, ORDER)
    configure_logging(settings.log_level, settings.log_format)
    configure_tracing()
    sockets = _listen(settings)
    directory = resolve_model(settings.model, model_stores(settings))
    # Before the imports that follow: it loads its weights meanwhile.
    launched = launch(engine_config(settings, str(directory)))

    def shut_down() -> None:
        server.should_exit = True

    try:
        from hagane.server.app import create_app
        from hagane.server.http_servers import DrainingServer

        app = create_app(settings, shut_down, launched)
    except BaseException:
        launched.process.kill()
        raise
    server = DrainingServer(app, settings)
    # Its servers raise the signals that they have handled again when they have shut down.
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets)
    failure = app.state.serving.client.failure
    if failure is not None:
        raise HaganeError(failure.message)
    return 0
