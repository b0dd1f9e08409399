// csrc/common/cuda/shared.h on the emulator.
#pragma once

#define PYLUM_SHARED(Type, name) Type& name = *reinterpret_cast<Type*>(::emulator::shared_memory)
