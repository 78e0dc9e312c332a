"""The toolboxes' own inferencers take the shipped configs and weights."""
# Hosts are optional, so their imports follow importorskip.
# flake8: noqa: E402

from pathlib import Path
from typing import Iterator, Tuple

import numpy as np
import pytest
import torch

pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')
yaml = pytest.importorskip('yaml')

import cv2
import mmpretrain
import mmseg.apis
from mmengine.config import Config
from mmengine.registry import DefaultScope

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(
    p for p in (ROOT / 'configs').glob('*/*.py')
    if p.parts[-2] not in ('_base_', 'lm', 'lra'))


def name_of(path: Path) -> str:
    return f'{path.parent.name}/{path.stem}'


def task_of(path: Path) -> str:
    """The toolbox that a config is for."""
    return Config.fromfile(
        str(path), import_custom_modules=False).default_scope


def shipped() -> Iterator[Tuple[Path, Path]]:
    """Configs and weights of the metafiles, where the weights are here."""
    for file in sorted((ROOT / 'configs').glob('*/metafile.yml')):
        for model in yaml.safe_load(file.read_text()).get('Models', []):
            if (ROOT / model.get('Weights', 'none')).is_file():
                yield ROOT / model['Config'], ROOT / model['Weights']


SHIPPED = list(shipped())
PAIRS = {
    task:
    pytest.mark.parametrize(
        'config, weights',
        [(c, w) for c, w in SHIPPED if c in CONFIGS and task_of(c) == task],
        ids=lambda path: path.stem)
    for task in ('mmseg', 'mmpretrain')
}


@pytest.fixture(autouse=True)
def scope(request) -> Iterator[None]:
    """What an inferencer makes the default scope is forgotten."""
    name = 'mmpretrain' if 'classifi' in request.node.name else 'mmseg'
    with DefaultScope.overwrite_default_scope(name):
        yield


@pytest.fixture
def image(tmp_path) -> Tuple[str, np.ndarray]:
    """A picture as a file, and as it is read from there: BGR."""
    pixels = np.random.randint(0, 255, (64, 90, 3), dtype=np.uint8)
    path = str(tmp_path / 'picture.png')
    cv2.imwrite(path, pixels)
    return path, pixels


def test_all_weights_are_in_metafiles() -> None:
    weights = set((ROOT / 'demo/weights').glob('*.pth'))
    assert {w for _, w in SHIPPED} == weights
    assert len(weights) >= 4
    assert len([c for c, _ in SHIPPED if c in CONFIGS]) >= 3


@PAIRS['mmseg']
def test_segmentor(config: Path, weights: Path, image, tmp_path) -> None:
    """Files and arrays, one by one and in a list, with pictures."""
    path, pixels = image
    inferencer = mmseg.apis.MMSegInferencer(
        str(config), str(weights), device='cpu', show_progress=False)
    count = inferencer.model.decode_head.num_classes
    meta = inferencer.model.dataset_meta
    assert len(meta['classes']) == len(meta['palette']) == count
    found = inferencer(path, return_vis=True, out_dir=str(tmp_path / 'out'))
    assert found['predictions'].shape == (64, 90)
    assert found['predictions'].max() < count
    assert found['visualization'].shape == (64, 90, 3)
    assert len(list((tmp_path / 'out').rglob('*.png'))) == 2
    array = inferencer(pixels)['predictions']
    np.testing.assert_array_equal(array, found['predictions'])
    both = inferencer([pixels, path], batch_size=2)['predictions']
    np.testing.assert_array_equal(both, [array, array])


@PAIRS['mmseg']
def test_segmentor_functions(config: Path, weights: Path, image,
                             tmp_path) -> None:
    path, pixels = image
    model = mmseg.apis.init_model(str(config), str(weights), device='cpu')
    found = mmseg.apis.inference_model(model, path)
    assert found.pred_sem_seg.shape == (64, 90)
    picture = mmseg.apis.show_result_pyplot(
        model, path, found, show=False, out_file=str(tmp_path / 'shown.png'))
    assert picture.shape == (64, 90, 3)
    assert (tmp_path / 'shown.png').is_file()
    # From now on the host reads arrays with this model.
    for result in mmseg.apis.inference_model(model, [pixels, pixels]):
        assert torch.equal(result.pred_sem_seg.data, found.pred_sem_seg.data)


@PAIRS['mmpretrain']
def test_classifier(config: Path, weights: Path, image, tmp_path) -> None:
    path, pixels = image
    inferencer = mmpretrain.ImageClassificationInferencer(
        str(config), pretrained=str(weights), device='cpu')
    found, = inferencer(path, show_dir=str(tmp_path / 'out'))
    assert isinstance(found['pred_class'], str)
    assert len(inferencer.classes) == len(found['pred_scores'])
    assert list((tmp_path / 'out').glob('*.png'))
    results = inferencer([pixels, pixels], batch_size=2)
    for result in results:
        np.testing.assert_allclose(
            result['pred_scores'], found['pred_scores'], rtol=1e-4)


@PAIRS['mmpretrain']
def test_classifier_functions(config: Path, weights: Path, image) -> None:
    """Features, and a model by its name in the metafiles."""
    path, pixels = image
    extractor = mmpretrain.FeatureExtractor(
        str(config), pretrained=str(weights), device='cpu')
    (stage, ), = extractor(path, stage='backbone')
    (neck, ), = extractor(pixels, stage='neck')
    torch.testing.assert_close(stage.mean((1, 2)), neck)
    model = mmpretrain.get_model(str(config), str(weights))
    torch.testing.assert_close(
        model.extract_feat(extractor_input(extractor, pixels))[0][0], neck)
    hub = mmpretrain.apis.ModelHub
    names = set(hub._models_dict)
    try:
        hub.register_model_index(
            str(ROOT / 'model-index.yml'), config_prefix=ROOT)
        metainfo = hub.get(config.stem)
        assert metainfo.weights == str(weights.relative_to(ROOT))
        model = mmpretrain.get_model(config.stem, str(weights))
        found = mmpretrain.inference_model(model, path)
        assert found['pred_class'] in model._dataset_meta['classes']
    finally:
        for name in set(hub._models_dict) - names:
            del hub._models_dict[name]


def extractor_input(extractor, pixels: np.ndarray) -> torch.Tensor:
    """What the host's extractor gives its model."""
    data, = extractor.preprocess([pixels])
    return extractor.model.data_preprocessor(data, False)['inputs']


@pytest.mark.parametrize('path', CONFIGS, ids=name_of)
def test_builds(path: Path, image, quick_init) -> None:
    """An inferencer of each config, which reads files and arrays alike."""
    scope = task_of(path)
    with DefaultScope.overwrite_default_scope(scope):
        if scope == 'mmseg':
            inferencer = mmseg.apis.MMSegInferencer(
                str(path), device='cpu', show_progress=False)
        else:
            inferencer = mmpretrain.ImageClassificationInferencer(
                str(path), pretrained=False, device='cpu')
        batch, = inferencer.preprocess(list(image), batch_size=2)
        file, array = batch['inputs']
        assert torch.equal(file, array)
        channels = inferencer.model.backbone.in_channels
        assert file.shape[0] == channels
        if scope == 'mmseg':  # the pipeline of the host's other functions
            assert inferencer.cfg.test_pipeline[0].type == 'LoadImageFromFile'
        if 'nano' in path.stem:
            inferencer(image[1])
