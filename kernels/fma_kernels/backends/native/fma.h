/* What the C files share. */
#ifndef FMA_H
#define FMA_H

#define FMA_EXPORT __attribute__((visibility("default")))

#endif
