/* Whether there is more than one level to choose from: that takes an x86 processor and GCC. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HAS_LEVELS
#endif
