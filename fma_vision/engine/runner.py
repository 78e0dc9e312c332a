"""The host's runner with a console that can be read."""
import logging
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner

# These go to the log file only: hundreds of lines before the first batch.
_FILE_ONLY = ('\n---', 'Config:\n', 'Hooks will be executed',
              'paramwise_options --', 'Distributed training is not used',
              'The prefix is not set in metric class',
              '"FileClient" will be deprecated', '"HardDiskBackend" is the')


class _ConsoleFilter(logging.Filter):

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_FILE_ONLY)


class ConsoleRunner(Runner):
    """MMEngine's runner; its preamble goes to the log file only."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger as the host does and filter its console.

        Args:
            *args: As :meth:`Runner.build_logger`.
            **kwargs: As :meth:`Runner.build_logger`.

        Returns:
            MMLogger: The runner's logger.
        """
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                # Names of files have characters that a locale may lack.
                handler.stream.reconfigure(
                    encoding='utf-8', errors='backslashreplace')
            else:
                handler.addFilter(_ConsoleFilter())
        logger.info(f'Config and environment are in the log under '
                    f'{self._log_dir}')
        return logger
