// The only way a kernel gets shared memory: one struct, dynamic, its size passed to launch().
#pragma once

// PYLUM_SHARED(Tiles, tiles); makes `tiles` a reference to the block's uninitialised Tiles.
#define PYLUM_SHARED(Type, name)                                          \
    extern __shared__ __align__(1024) unsigned char pylum_shared_bytes[]; \
    Type& name = *reinterpret_cast<Type*>(pylum_shared_bytes)
