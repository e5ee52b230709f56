/* For every processor of the architecture. */
#define LEVEL operations_base
#include "level.h"
