# Compiler flags that hold for every target, and the flags of the files written for one instruction set.
set(CMAKE_CXX_STANDARD 20)  # torch 2.15 requires it, torch 2.11 accepts it
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

# The integer contract fixes every rounding, so the compiler may not fuse a multiply and an add behind our back.
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>)
add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:-fmad=false;-Xcompiler=-ffp-contract=off>")

add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra>")
if(TORCHQUANT_DEV)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-Werror>)
  # GCC 12 guesses these from what inlining left over of libstdc++ and reports code that is right; they stay warnings.
  foreach(guess maybe-uninitialized stringop-overflow stringop-overread free-nonheap-object array-bounds restrict)
    add_compile_options("$<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-error=${guess}>")
  endforeach()
endif()

if(TORCHQUANT_SANITIZE)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=address,undefined> $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=all>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>)
  add_link_options(-fsanitize=address,undefined)
endif()

# Files named *_avx2.cpp, *_avx_vnni.cpp, *_avx512.cpp and *_avx512_vnni.cpp get their instruction set, and are left out where the processor is
# another one. Loops over branches become vectors only where the compiler may compute both sides: nothing reads errno or the
# floating-point exception flags, so no result changes.
set(tq_vector_flags -mfma -mf16c -fno-trapping-math -fno-math-errno)
set(tq_avx2_flags ${tq_vector_flags} -mavx2)
set(tq_avx_vnni_flags ${tq_avx2_flags} -mavxvnni)
set(tq_avx512_flags ${tq_vector_flags} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
set(tq_avx512_vnni_flags ${tq_avx512_flags} -mavx512vnni)
function(tq_apply_isa_flags sources_variable)
  set(sources ${${sources_variable}})
  set(isa_pattern "_(avx2|avx_vnni|avx512|avx512_vnni)\\.cpp$")
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    foreach(source IN LISTS sources)
      if(source MATCHES "${isa_pattern}")
        set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${tq_${CMAKE_MATCH_1}_flags}")
      endif()
    endforeach()
  else()
    list(FILTER sources EXCLUDE REGEX "${isa_pattern}")
  endif()
  set(${sources_variable} ${sources} PARENT_SCOPE)
endfunction()
