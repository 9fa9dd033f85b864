/* The version of the project: of the library, the programs and the packages. */
#ifndef DPK_PROJECT_VERSION_H
#define DPK_PROJECT_VERSION_H

#define DPK_PROJECT_VERSION "0.1.0"

#endif
