/* Says inside the library what it was built from: build.py sets FMA_KEY. */
#include "fma.h"

FMA_EXPORT extern const char fma_key[];
const char fma_key[] = FMA_KEY;
