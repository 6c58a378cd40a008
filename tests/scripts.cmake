# Tests that are scripts: checks of the source tree, and programs that drive the real binary from outside. They get the
# binary as MOECTL; exit status 77 means skipped, with the reason printed.
#   tests/scripts/*_test.py   Python's standard library only
#   tests/e2e/*_test.py       also the packages of tests/requirements.txt (build/venv, made by scripts/python-env)
find_program(PYTHON3 python3 REQUIRED)

function(moectl_script name)
  add_test(NAME ${name} COMMAND ${ARGN} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT ${MOECTL_TEST_TIMEOUT}
                       ENVIRONMENT "MOECTL=$<TARGET_FILE:moectl>;PYTHONDONTWRITEBYTECODE=1;PYTHONUNBUFFERED=1")
endfunction()

if(TARGET moectl)
  moectl_script(check_layers ${PYTHON3} scripts/check_layers.py)
  moectl_script(check_coroutines ${PYTHON3} scripts/check_coroutines.py)
  moectl_script(check_files ${PYTHON3} scripts/check_files.py)
  moectl_script(check_format scripts/format --check)
  moectl_script(check_docs moectl docgen --check)
  file(GLOB man_pages CONFIGURE_DEPENDS man/*.1)
  moectl_script(check_man bash tests/scripts/if_installed.sh mandoc -T lint -W warning ${man_pages})
  moectl_script(check_shell bash tests/scripts/if_installed.sh shellcheck scripts/install-deps scripts/nccl-header scripts/build scripts/python-env
                scripts/test scripts/demo scripts/format scripts/gpu-test .ci/run completions/moectl.bash tests/scripts/demo_test.sh
                tests/scripts/if_installed.sh)
  foreach(shell bash zsh fish)
    moectl_script(completions_${shell} ${PYTHON3} tests/scripts/completions_test.py ${shell})
  endforeach()
  moectl_script(demo bash tests/scripts/demo_test.sh)

  file(GLOB scripts CONFIGURE_DEPENDS tests/scripts/*_test.py)
  list(FILTER scripts EXCLUDE REGEX completions_test)
  foreach(script ${scripts})
    get_filename_component(name ${script} NAME_WE)
    moectl_script(${name} ${PYTHON3} ${script})
  endforeach()

  file(GLOB scripts CONFIGURE_DEPENDS tests/e2e/*_test.py)
  foreach(script ${scripts})
    get_filename_component(name ${script} NAME_WE)
    moectl_script(e2e_${name} bash tests/scripts/if_installed.sh ${CMAKE_BINARY_DIR}/venv/bin/python ${script})
  endforeach()

  # For e2e/cuda_fault_test.py: stands before NVIDIA's driver and breaks on demand. Compiles without CUDA.
  add_library(cuda_fault_driver MODULE tests/faults/cuda_driver.cpp)
  set_target_properties(cuda_fault_driver PROPERTIES PREFIX "" OUTPUT_NAME libcuda SUFFIX .so.1
                        LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fault_driver)
  target_link_libraries(cuda_fault_driver PRIVATE ${CMAKE_DL_LIBS})

  # For e2e/rank_fault_test.py: moectl with ranks on devices that break on demand.
  add_executable(stream_server tests/faults/stream_server.cpp)
  target_link_libraries(stream_server PRIVATE moectl_cmd)

  # Processes that are killed and stopped at chosen moments: these tests get the machine for themselves.
  set_tests_properties(e2e_router_test e2e_pd_test e2e_deploy_test e2e_deploy_faults_test e2e_attribution_test
                       e2e_rank_fault_test
                       PROPERTIES RUN_SERIAL ON)

  # References computed anew by the libraries themselves, beside the recorded ones that the unit tests read.
  moectl_script(tokenizer_fuzz bash tests/scripts/if_installed.sh ${CMAKE_BINARY_DIR}/venv/bin/python
                tests/text/tokenizer_fuzz.py $<TARGET_FILE:test_text> --count 4000 --seed 1)
  moectl_script(chat_template_cases bash tests/scripts/if_installed.sh ${CMAKE_BINARY_DIR}/venv/bin/python
                tests/text/make_chat_template_cases.py --check)
  moectl_script(chat_template_fuzz bash tests/scripts/if_installed.sh ${CMAKE_BINARY_DIR}/venv/bin/python
                tests/text/chat_template_fuzz.py $<TARGET_FILE:test_text> --count 3000 --seed 1)
endif()
