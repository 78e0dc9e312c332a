"""From a config to a runner, on whatever device is there."""
import gc
import logging
import os
import sys
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

from .checkpoint import check_checkpoint, read_checkpoint, use_safe_reader
from .classes import check_classes, check_same_classes, check_vocabulary
from .config import (Config, UserError, building, check_data_roots,
                     drop_averaging, load_config, set_work_dir)
from .console import print_any_name
from .errors import one_line
from .labels import check_samples, explain_empty

ACCELERATOR_AMP, CPU_AMP = 'AmpOptimWrapper', 'CPUAmpOptimWrapper'


def select_device(device: Optional[str]) -> None:
    """Make the runner use a device; call it before the runner is built.

    Args:
        device (str, optional): 'cpu', 'cuda' or None for the best there is.

    Raises:
        UserError: CUDA was asked for and is not there.
    """
    import torch
    from mmengine.device import utils
    if device == 'cpu':
        # Read by get_device(), which the runner and the hosts ask.
        utils.DEVICE = 'cpu'
    elif device == 'cuda' and not torch.cuda.is_available():
        raise UserError('--device cuda given, but PyTorch '
                        f'{torch.__version__} sees no CUDA device')


def on_cpu() -> bool:
    """Whether the runner will use the CPU."""
    from mmengine.device import get_device
    return get_device() == 'cpu'


def prepare(cfg: Config,
            loaders: Tuple[str, ...],
            launcher: str = 'none',
            amp: bool = False) -> None:
    """Fit a config to this machine and check that its data is there.

    Args:
        cfg (Config): Changed in place.
        loaders (tuple[str]): Dataloader keys that will be used.
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi'.
        amp (bool): Train with mixed precision.

    Raises:
        UserError: The data is missing, or the optimizer wrapper of the
            config cannot be switched to mixed precision.
    """
    cfg.launcher = launcher
    check_data_roots(cfg, loaders)
    if amp:
        _enable_amp(cfg)
    if on_cpu():
        _fit_to_cpu(cfg)
    _drop_late_schedulers(cfg)


def build_runner(cfg: Config) -> Any:
    """Build the runner of a prepared config.

    Args:
        cfg (Config): A config that :func:`prepare` has seen.

    Returns:
        mmengine.runner.Runner: With plain batch norm where synchronised
        batch norm cannot run or has nobody to synchronise with. Local
        checkpoints are read without running code from now on.

    Raises:
        UserError: A setting is wrong.
    """
    from mmengine.dist import get_world_size
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import RUNNERS

    from .runner import ConsoleRunner
    if cfg.get('runner_type') == 'FlexibleRunner':
        raise UserError(
            'runner_type FlexibleRunner (with it FSDPStrategy) is refused: '
            'it builds the model only after these tools have to check it; '
            'allowed is Runner, the default, in several processes by '
            'tools/dist_train.sh')
    if cfg.launcher == 'pytorch' and on_cpu():
        # The host's own start-up asks for a CUDA device.
        import torch.distributed as dist
        if not dist.is_initialized():
            dist.init_process_group('gloo')
    use_safe_reader()
    with building("the config's model or runner"):
        runner = (
            RUNNERS.build(cfg)
            if 'runner_type' in cfg else ConsoleRunner.from_cfg(cfg))
    if on_cpu() or get_world_size() == 1:
        runner.model = revert_sync_batchnorm(runner.model)
    return runner


def check_data(runner: Any,
               part: str,
               checkpoint: Optional[str] = None,
               samples: str = 'none') -> None:
    """Build a runner's data and compare its classes with the model's.

    Data to validate on must have the classes, and texts the vocabulary, of
    the training data as well.

    Args:
        runner (mmengine.runner.Runner): A runner that has not run yet.
        part (str): 'train' or 'test'.
        checkpoint (str, optional): Where the weights come from.
        samples (str): Which files to look into, as
            :func:`~fma_vision.engine.labels.check_samples` takes it.

    Raises:
        UserError: The data does not build, has other classes or tokens, or
            files that cannot be used.
    """
    dataset = _dataset(runner, part)
    check_classes(runner.model, dataset)
    sets = {f'{part}_dataloader': dataset}
    if part == 'train' and runner.cfg.get('val_dataloader') is not None:
        other = sets['val_dataloader'] = _dataset(runner, 'val')
        check_same_classes(dataset, other)
        check_vocabulary(other, getattr(dataset, 'metainfo', None),
                         'the training data')
    if checkpoint is not None and '://' not in checkpoint:
        meta = read_checkpoint(checkpoint).get('meta') or {}
        check_vocabulary(dataset, meta.get('dataset_meta'),
                         f'checkpoint {checkpoint}')
    for name, found in sets.items():
        check_samples(runner.model, found, name, samples)


def trained_runner(
    config: str,
    checkpoint: str,
    device: Optional[str] = None,
    work_dir: Optional[str] = None,
    cfg_options: Optional[Dict[str, Any]] = None,
    bases: Sequence[str] = ()
) -> Any:
    """A trained model beside the data it is tested on.

    Args:
        config, checkpoint (str): Files.
        device (str, optional): As for :func:`select_device`.
        work_dir (str, optional): For the log.
        cfg_options (dict, optional): Settings to override.
        bases (sequence[str]): Files to merge, as for :func:`load_config`.

    Returns:
        mmengine.runner.Runner: With ``model``, the weights loaded, in eval
        mode, and the data built.

    Raises:
        UserError: A file, a setting or the data is wrong.
    """
    select_device(device)
    cfg = load_config(config, cfg_options, bases)
    set_work_dir(cfg, config, work_dir, bases)
    cfg.load_from = checkpoint
    drop_averaging(cfg)
    prepare(cfg, ('test_dataloader', ))
    runner = build_runner(cfg)
    check_checkpoint(runner.model, checkpoint)
    check_data(runner, 'test', checkpoint)
    runner.load_or_resume()
    runner.model.eval()
    return runner


def _dataset(runner: Any, part: str) -> Any:
    """The data of a loop, which the first access builds and keeps."""
    loader = f'{part}_dataloader'
    what = f"the config's {loader} or {part}_cfg"
    try:
        with building(what):
            return getattr(runner, f'{part}_loop').dataloader.dataset
    except UserError as error:
        if 'need at least one array' in str(error):
            explain_empty(runner.cfg.get(loader), loader)
        raise
    except OSError as error:
        if error.filename is None:  # a sentence of this project's own
            raise
        raise UserError(
            f'{what}: {error.filename} cannot be read ({error.strerror}): '
            'data_root, data_prefix and ann_file say where the data is') \
            from error
    except RuntimeError as error:  # the host found no file
        raise UserError(f'{what} does not build: {one_line(error)}') \
            from error


def run_tool(main: Callable[[], Any]) -> None:
    """Run a tool's main function; what the user got wrong is one line.

    Args:
        main (callable): Takes nothing.
    """
    print_any_name()
    # A full disk would print a traceback for each line of the log.
    logging.raiseExceptions = False
    try:
        main()
        _leave_group()
    except KeyboardInterrupt:
        sys.exit('interrupted')
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (UserError, OSError) as error:
        sys.exit(f'error: {" ".join(str(error).split())}')


def _leave_group() -> None:
    """End the work of several processes.

    One that exits with the group still open may abort: its threads run on.
    After an error it is left open, as others may never come to close it.
    """
    import torch.distributed as dist
    if dist.is_available() and dist.is_initialized():
        gc.collect()  # a model that was distributed holds on to the group
        dist.destroy_process_group()


def _enable_amp(cfg: Config) -> None:
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind in (ACCELERATOR_AMP, CPU_AMP):
        return
    if kind != 'OptimWrapper':
        raise UserError('--amp needs optim_wrapper.type OptimWrapper or '
                        f'{ACCELERATOR_AMP}, the config has {kind}')
    cfg.optim_wrapper.type = ACCELERATOR_AMP
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def _fit_to_cpu(cfg: Config) -> None:
    wrapper = cfg.get('optim_wrapper')
    if wrapper is not None and wrapper.get('type') == ACCELERATOR_AMP:
        from . import amp  # noqa: F401  registers the wrapper
        wrapper.type = CPU_AMP
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(key, None)
    dist_cfg = cfg.get('env_cfg', {}).get('dist_cfg')
    if dist_cfg is not None and dist_cfg.get('backend') == 'nccl':
        dist_cfg.backend = 'gloo'
    if cfg.launcher != 'none':
        # A CPU module has no device index; the host would give it one.
        cfg.setdefault('model_wrapper_cfg',
                       dict(type='MMDistributedDataParallel'))
        cfg.model_wrapper_cfg.device_ids = None
        os.environ.setdefault('LOCAL_RANK', '0')


def _drop_late_schedulers(cfg: Config) -> None:
    """Drop schedulers that begin after the last iteration or epoch.

    A run shortened on the command line would otherwise fail on them.
    """
    loop, schedulers = cfg.get('train_cfg'), cfg.get('param_scheduler')
    if not loop or not isinstance(schedulers, (list, tuple)):
        return
    ends = {True: loop.get('max_epochs'), False: loop.get('max_iters')}

    def starts_in_time(scheduler: dict) -> bool:
        end = ends[bool(scheduler.get('by_epoch', True))]
        return end is None or scheduler.get('begin', 0) < end

    cfg.param_scheduler = [s for s in schedulers if starts_in_time(s)]
