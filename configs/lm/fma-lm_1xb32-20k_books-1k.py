# Dickens, Tolstoy and Twain in English: 24.9 + 1.3 M bytes of UTF-8, nearly
# all ASCII. Every validation character is one byte, so bits per byte are
# bits per character.
_base_ = [
    '../_base_/models/fma_lm.py', '../_base_/datasets/text.py',
    '../_base_/schedules/schedule_lm.py', '../_base_/default_runtime_lm.py'
]
