#!/usr/bin/env python3
"""Text to tokens, timesteps and noise through ctypes: embed.py LIBDIFFPAK.so MODEL.dpk PROMPT.

Structs that only the library makes (model, session) stay opaque; dpk_error is code and text."""
import ctypes as c
import sys


class Error(c.Structure):
    _fields_ = [("code", c.c_int), ("msg", c.c_char * 508)]


class Timetable(c.Structure):
    _fields_ = [("n_timesteps", c.c_size_t), ("n_sigmas", c.c_size_t),
                ("timesteps", c.POINTER(c.c_double)), ("sigmas", c.POINTER(c.c_double)),
                ("init_noise_sigma", c.c_double)]


class Array(c.Structure):
    _fields_ = [("name", c.c_char_p), ("type", c.c_int), ("rank", c.c_int), ("dim", c.c_int32 * 4),
                ("data", c.c_void_p)]


class Arrays(c.Structure):
    _fields_ = [("n", c.c_size_t), ("at", c.POINTER(Array))]


F32, I32 = 1, 6


def main():
    library, path, prompt = sys.argv[1:]
    dpk = c.CDLL(library)
    dpk.dpk_version.restype = c.c_char_p
    dpk.dpk_model_meta.restype = c.c_char_p
    dpk.dpk_model_n_tokenizers.restype = c.c_size_t
    dpk.dpk_model_n_ids.restype = c.c_size_t
    for name in ("dpk_model_free", "dpk_session_free", "dpk_timetable_free", "dpk_arrays_free"):
        getattr(dpk, name).restype = None
    err = Error()

    def call(function, *args):
        if function(*args, c.byref(err)):
            sys.exit(err.msg.decode())

    model, session = c.c_void_p(), c.c_void_p()
    call(dpk.dpk_model_open, c.byref(model), path.encode())
    print("diffpak", dpk.dpk_version().decode())
    print("model", dpk.dpk_model_meta(model, b"model.family").decode())

    inputs = []
    for i in range(dpk.dpk_model_n_tokenizers(model)):
        n = dpk.dpk_model_n_ids(model, c.c_size_t(i))
        ids, n_tokens = (c.c_int32 * n)(), c.c_size_t()
        call(dpk.dpk_model_tokens, model, c.c_size_t(i), prompt.encode(), ids, c.byref(n_tokens))
        print("tokens", list(ids)[:n_tokens.value])
        name = b"ids" if i == 0 else b"ids_%d" % (i + 1)
        inputs.append(Array(name, I32, 2, (1, n, 0, 0), c.cast(ids, c.c_void_p)))

    call(dpk.dpk_session_create, c.byref(session), model, None)
    out = c.POINTER(Arrays)()
    call(dpk.dpk_session_run, session, b"text", (Array * len(inputs))(*inputs),
         c.c_size_t(len(inputs)), c.byref(out))
    for a in out.contents.at[:out.contents.n]:
        print("made", a.name.decode(), list(a.dim)[:a.rank])
    dpk.dpk_arrays_free(out)

    table = c.POINTER(Timetable)()
    call(dpk.dpk_model_timetable, model, b"ddim", c.c_uint32(4), c.byref(table))
    print("timesteps", table.contents.timesteps[:table.contents.n_timesteps])
    dpk.dpk_timetable_free(table)

    noise = (c.c_float * 4)()
    call(dpk.dpk_noise, c.c_uint64(0), 0, F32, c.c_size_t(4), noise)
    print("noise", " ".join("%.4f" % x for x in noise))

    if dpk.dpk_model_open(c.byref(c.c_void_p()), b"/no/such/file", c.byref(err)) == 0:
        sys.exit("a file that is not there was opened")
    print("error", err.code, err.msg.decode())
    dpk.dpk_session_free(session)
    dpk.dpk_model_free(model)


main()
