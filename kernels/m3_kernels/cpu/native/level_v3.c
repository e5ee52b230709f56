/* For x86 processors with AVX2. */
#include "levels.h"
#ifdef HAS_LEVELS
#pragma GCC target("arch=x86-64-v3")
#define LEVEL operations_v3
#include "level.h"
#endif
