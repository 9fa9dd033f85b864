#include "fail.h"

#include <stdarg.h>
#include <stdio.h>

int dpk_error_set(dpk_error *err, int code, const char *format, ...) {
    if (err) {
        va_list args;
        err->code = code;
        va_start(args, format);
        vsnprintf(err->msg, sizeof err->msg, format, args);
        va_end(args);
    }
    return code;
}
