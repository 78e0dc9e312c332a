"""Test any model of this project: classes, masks or text."""
import argparse
import copy
import os
import sys


def parse_args(argv=None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv (list[str], optional): Defaults to ``sys.argv``.

    Returns:
        argparse.Namespace: The options.
    """
    from fma_vision.engine.arguments import (add_check_data,
                                             add_config_options, add_device)
    parser = argparse.ArgumentParser(description='Test a model')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--work-dir', help='folder for the log (default: as in train.py)')
    parser.add_argument(
        '--out',
        help='FILE.json: the metrics; FILE.pkl: every prediction; anything '
        'else is a folder for index masks (segmentation)')
    parser.add_argument(
        '--show-dir', help='folder for pictures of the predictions')
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation with tta_pipeline of the config')
    parser.add_argument(
        '--amp',
        action='store_true',
        help='mixed precision: fp16 on a GPU, bfloat16 on the CPU')
    add_check_data(parser)
    add_device(parser)
    add_config_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def enable_tta(cfg) -> None:
    """Wrap the model and switch the test pipeline.

    Args:
        cfg (Config): Changed in place.

    Raises:
        UserError: The config has no test-time augmentation.
    """
    from mmengine.config import ConfigDict

    from fma_vision.engine import UserError
    if 'tta_pipeline' not in cfg or 'tta_model' not in cfg:
        raise UserError('--tta needs tta_model and tta_pipeline in the config')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset = cfg.test_dataloader.dataset
    # A concatenated set keeps a pipeline in each part.
    for part in dataset.get('datasets', [dataset]):
        part.pipeline = copy.deepcopy(cfg.tta_pipeline)


def enable_pictures(cfg, show_dir: str) -> None:
    """Draw every prediction into a folder.

    Args:
        cfg (Config): Changed in place.
        show_dir (str): The folder.

    Raises:
        UserError: The config has no visualization hook.
    """
    from fma_vision.engine import UserError
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UserError('--show-dir needs default_hooks.visualization')
    if hook.type.startswith('Seg'):
        hook.update(draw=True, interval=1)
        cfg.visualizer.save_dir = show_dir
    else:
        hook.update(enable=True, interval=1, out_dir=show_dir)


def save_masks(cfg, folder: str) -> None:
    """Let the evaluators write index masks.

    Args:
        cfg (Config): Changed in place.
        folder (str): Where to.

    Raises:
        UserError: The task is not segmentation.
    """
    from fma_vision.engine import UserError
    evaluators = cfg.test_evaluator
    if not isinstance(evaluators, (list, tuple)):
        evaluators = [evaluators]
    for evaluator in evaluators:
        if 'IoU' not in evaluator.type:
            raise UserError(f'--out {folder} is a folder, which only '
                            'segmentation writes; give FILE.json or FILE.pkl')
        evaluator.output_dir = folder


def write_metrics(args: argparse.Namespace, runner, metrics: dict) -> None:
    """Write the metrics, and what they were measured with, as JSON.

    Args:
        args (argparse.Namespace): From :func:`parse_args`.
        runner (mmengine.runner.Runner): After the test.
        metrics (dict[str, float]): Its result.
    """
    from fma_vision.engine.environment import collect_environment
    from fma_vision.engine.files import write_json
    device = next(runner.model.parameters()).device
    # float32 numbers carry no more than about seven digits.
    rounded = {k: round(float(v), 4) for k, v in metrics.items()}
    write_json(
        args.out,
        dict(
            config=args.config,
            base=args.base,
            checkpoint=args.checkpoint,
            metrics=rounded,
            environment=collect_environment(device, runner.seed)))


def test(args: argparse.Namespace) -> dict:
    """Build the runner of the options and test.

    Args:
        args (argparse.Namespace): From :func:`parse_args`.

    Returns:
        dict[str, float]: The metrics.
    """
    from fma_vision.engine import (UserError, build_runner, check_checkpoint,
                                   check_data, drop_averaging, load_config,
                                   prepare, select_device, set_work_dir)
    select_device(args.device)
    cfg = load_config(args.config, args.cfg_options, args.base)
    set_work_dir(cfg, args.config, args.work_dir, args.base)
    if '://' not in args.checkpoint and not os.path.isfile(args.checkpoint):
        raise UserError(f'no checkpoint file {args.checkpoint}')
    if cfg.get('test_dataloader') is None:
        raise UserError(f'{args.config} has no test_dataloader')
    cfg.load_from = args.checkpoint
    drop_averaging(cfg)
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.tta:
        enable_tta(cfg)
    if args.show_dir:
        enable_pictures(cfg, args.show_dir)
    suffix = os.path.splitext(args.out or '')[1]
    if args.out and suffix not in ('.json', '.pkl'):
        save_masks(cfg, args.out)
    prepare(cfg, ('test_dataloader', ), launcher=args.launcher)
    runner = build_runner(cfg)
    # Reads without running code, so it comes before the runner's loading.
    check_checkpoint(runner.model, args.checkpoint)
    check_data(runner, 'test', args.checkpoint, samples=args.check_data)
    if suffix == '.pkl':
        from mmengine.evaluator import DumpResults
        runner.test_evaluator.metrics.append(DumpResults(args.out))
    metrics = runner.test()
    if suffix == '.json' and runner.rank == 0:
        write_metrics(args, runner, metrics)
    return metrics


if __name__ == '__main__':
    # So that a checkout works without installing it.
    sys.path.insert(
        0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from fma_vision.engine import run_tool
    run_tool(lambda: test(parse_args()))
