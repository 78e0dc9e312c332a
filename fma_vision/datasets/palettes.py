"""Class names and colours of the small segmentation sets."""

# In the order of the label values 0..N-1; 255 is never a class.
CAMVID_CLASSES = ('sky', 'building', 'pole', 'road', 'pavement', 'tree',
                  'sign-symbol', 'fence', 'car', 'pedestrian', 'bicyclist')
# yapf: disable
CAMVID_PALETTE = [[128, 128, 128], [128, 0, 0], [192, 192, 128],
                  [128, 64, 128], [60, 40, 222], [128, 128, 0],
                  [192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0],
                  [0, 128, 192]]

# yapf: enable

STREET8_CLASSES = ('building', 'car', 'door', 'pavement', 'road', 'sky',
                   'vegetation', 'window')
STREET8_PALETTE = [[170, 80, 70], [64, 0, 160], [240, 170, 40],
                   [200, 160, 200], [110, 110, 120], [110, 180, 240],
                   [80, 150, 60], [40, 220, 220]]

# CamVid's label value -> the same thing among the eight street classes;
# the rest (pole, sign, fence, people) has no counterpart and is ignored.
CAMVID_TO_STREET8 = {
    0: 5,  # sky
    1: 0,  # building
    2: 255,
    3: 4,  # road
    4: 3,  # pavement
    5: 6,  # tree -> vegetation
    6: 255,
    7: 255,
    8: 1,  # car
    9: 255,
    10: 255
}

DUBAI_AERIAL_CLASSES = ('building', 'land', 'road', 'vegetation', 'water',
                        'unlabelled')
DUBAI_AERIAL_PALETTE = [[60, 16, 152], [132, 41, 246], [110, 193, 228],
                        [254, 221, 58], [226, 169, 41], [155, 155, 155]]
