/* Errors: one struct, owned by the caller, filled once at the place that failed.
 *
 * Every call that can fail returns a status (DPK_OK or a code) and takes a `dpk_error *`, which may
 * be NULL when the caller does not want the text. The message is one line: what failed, which
 * object, what was found, what was wanted. */
#ifndef DPK_ERROR_H
#define DPK_ERROR_H

#ifdef __cplusplus
extern "C" {
#endif

enum dpk_status {
    DPK_OK = 0,
    DPK_ENOMEM = 1,       /* out of memory, or over the caller's memory limit */
    DPK_EIO = 2,          /* the operating system refused: open, read, write, map */
    DPK_EFORMAT = 3,      /* a file breaks a rule of its format */
    DPK_EARG = 4,         /* an argument out of range, or unusable with this model */
    DPK_EUNSUPPORTED = 5, /* valid, but not something this build or this backend can do */
    DPK_ECANCELLED = 6,   /* the progress callback asked to stop */
    DPK_EBACKEND = 7      /* a device or its driver failed */
};

typedef struct dpk_error {
    int code;      /* enum dpk_status */
    char msg[508]; /* NUL-terminated UTF-8, one line, no final newline */
} dpk_error;

#ifdef __cplusplus
}
#endif
#endif
