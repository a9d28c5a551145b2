package client

import (
	"reflect"
	"strconv"
	"unicode/utf8"

	"github.com/tarn-storage/tarn/errs"
)

// checkText refuses a request with a string that is not UTF-8: JSON would carry
// another one in its place, and so mean another object or file.
func checkText(v reflect.Value) error {
	switch v.Kind() {
	case reflect.String:
		if s := v.String(); !utf8.ValidString(s) {
			return errs.New(errs.Invalid, "client.request", "", "%s is not valid UTF-8", strconv.Quote(s)).
				WithHint("names and paths are sent as text; rename the file, or fix the script that made it")
		}
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			return checkText(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if !v.Type().Field(i).IsExported() {
				continue
			}
			if err := checkText(v.Field(i)); err != nil {
				return err
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return nil // bytes, sent in base64
		}
		for i := range v.Len() {
			if err := checkText(v.Index(i)); err != nil {
				return err
			}
		}
	}
	return nil
}
