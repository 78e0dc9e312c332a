"""The host's runner with a console that can be read."""
import logging
import warnings
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner

# These go to the log file only: hundreds of lines before the first batch.
_FILE_ONLY = ('\n---', 'Config:\n', 'Hooks will be executed',
              'paramwise_options --', 'Distributed training is not used',
              'The prefix is not set in metric class',
              '"FileClient" will be deprecated', '"HardDiskBackend" is the')

# Warnings about the host's own defaults, which the configs here mean.
_EXPECTED_WARNINGS = ('Default ``avg_non_ignore`` is False',
                      'The draw is False, it means that the hook',
                      '`build_loss` function will be deprecated',
                      "'pin_memory' argument is set as true",
                      'The shape of value will convert from',
                      '`reduce_zero_label` will be deprecated',
                      "Only use 'alpha' for pillow backend")


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
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings('ignore', message=message)
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(_ConsoleFilter())
        logger.info(f'Config and environment are in the log under '
                    f'{self._log_dir}')
        return logger
