/* The functions that Python calls. */
#include "fma.h"

FMA_EXPORT int fma_abi(void) { return 1; }
