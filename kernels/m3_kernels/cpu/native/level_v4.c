/* For x86 processors with AVX-512. */
#include "levels.h"
#ifdef HAS_LEVELS
#pragma GCC target("arch=x86-64-v4")
#define LEVEL operations_v4
#include "level.h"
#endif
